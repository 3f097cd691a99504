"""Where masks go: a directory, object storage or Redis, chosen by URI."""

from __future__ import annotations

from workers.buckets import BUCKET_SCHEMES
from workers.errors import UserError
from workers.settings import StoreSettings
from workers.stores.base import MaskStore, mask_key
from workers.stores.local import LocalStore
from workers.stores.object_storage import ObjectStorageStore
from workers.stores.redis import RedisStore

__all__ = ["MaskStore", "mask_key", "open_store"]


def open_store(settings: StoreSettings) -> MaskStore:
    """The store that the settings name. Raises UserError for an address that it can't understand."""
    scheme = settings.uri.partition("://")[0].lower()
    if scheme == "file":
        return LocalStore.from_uri(settings.uri)
    if scheme in BUCKET_SCHEMES:
        return ObjectStorageStore.from_uri(settings.uri, settings.timeout_s)
    if scheme in ("redis", "rediss"):
        return RedisStore.from_settings(settings)
    # The address is not repeated: it may hold a password.
    raise UserError(
        "the store's address begins with file:///, s3://, gs://, az://, redis:// or rediss://, "
        "such as file:///var/lib/mristream/masks or s3://bucket/prefix"
    )
