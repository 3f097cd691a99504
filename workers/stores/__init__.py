"""Where masks go: a directory, object storage or Redis, chosen by URI."""

from __future__ import annotations

from workers.buckets import BUCKET_SCHEMES
from workers.errors import UserError
from workers.stores.base import MaskStore, mask_key
from workers.stores.local import LocalStore
from workers.stores.object_storage import ObjectStorageStore
from workers.stores.redis import RedisStore

__all__ = ["MaskStore", "mask_key", "open_store"]


def open_store(uri: str, timeout_s: float) -> MaskStore:
    """The store at `uri`; `timeout_s` is for one mask. Raises UserError for a URI that it can't understand."""
    scheme = uri.partition("://")[0].lower()
    if scheme == "file":
        return LocalStore.from_uri(uri)
    if scheme in BUCKET_SCHEMES:
        return ObjectStorageStore.from_uri(uri, timeout_s)
    if scheme in ("redis", "rediss"):
        return RedisStore.from_uri(uri, timeout_s)
    # The address is not repeated: it may hold a password.
    raise UserError(
        "the store's address begins with file:///, s3://, gs://, az://, redis:// or rediss://, "
        "such as file:///var/lib/mristream/masks or s3://bucket/prefix"
    )
