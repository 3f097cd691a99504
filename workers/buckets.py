"""Clients of object storage, Amazon S3 and what speaks its protocol, Google Cloud Storage and Azure, and their errors.

Endpoint and credentials come from each cloud's usual environment variables: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID…, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME…, or from the machine's own identity.
Nothing that a scan's message says changes whom we ask: it names a bucket and an object, never a host.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore, from_url

from workers.errors import UserError

if TYPE_CHECKING:
    from obstore.store import ClientConfig

BUCKET_SCHEMES = ("s3", "gs", "az")
# What obstore raises for whatever goes wrong outside this process; a missing object is a FileNotFoundError.
BUCKET_ERRORS = (BaseError, OSError)
# A retry or two smooth over a dropped connection. Outages are waited for further up, with longer delays.
_RETRIES = 2
_CONNECT_TIMEOUT_S = 5.0
# All the names under which obstore looks for an endpoint, and those that mean that it need not ask anyone for its keys.
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"),
    "gs": (),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_OWN_KEYS = ("AWS_SECRET_ACCESS_KEY", "AWS_SKIP_SIGNATURE")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# The discard port: nothing listens there.
_NOBODY = "http://127.0.0.1:9"
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_MISSING_BUCKET_CODES = ("NoSuchBucket", "ContainerNotFound")
_DENIED_CODES = ("AccessDenied", "AuthorizationPermissionMismatch", "AuthorizationFailure")


def open_bucket(scheme: str, bucket: str, timeout_s: float) -> ObjectStore:
    """Client of one bucket (Azure: container), thread-safe; nothing is asked of the server yet.

    A call answers or fails within about `timeout_s`. Raises UserError for a name that can't be one, or where the
    environment does not say enough. Never `repr` the client: Azure's panics (obstore 0.12).
    """
    if scheme not in BUCKET_SCHEMES or not _BUCKET_NAME.fullmatch(bucket):
        # Not repeated: people write credentials there.
        raise UserError(f"after {scheme}:// stands the name of a bucket alone, without user, host or port")
    # One attempt may take half of the time, and none begins after that half is over.
    half = timedelta(seconds=timeout_s / 2)
    try:
        return from_url(
            f"{scheme}://{bucket}",
            client_options={
                "timeout": half,
                "connect_timeout": min(half, timedelta(seconds=_CONNECT_TIMEOUT_S)),
                **_no_redirects(scheme),
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": half},
        )
    except (BaseError, ValueError) as error:
        raise UserError(f"{scheme}://{bucket} can't be used: {_detail(error)}. {_ADVICE}") from error


def _no_redirects(scheme: str) -> ClientConfig:
    """Keeps an endpoint from sending us on to another host, such as one that only we can reach.

    obstore follows redirects and can't be told not to (0.12). Without HTTP, none leads away from TLS. An endpoint of
    the operator's own is the only host that is asked directly: all others "through a proxy" that isn't there.
    """
    endpoints = [urlsplit(url) for name in _ENDPOINTS[scheme] if (url := os.environ.get(name))]
    options: ClientConfig = {}
    if any(endpoint.scheme == "http" for endpoint in endpoints):
        options["allow_http"] = True
    # A proxy of the network decides by itself who may be reached; a machine's identity is asked of other hosts.
    has_proxy = any(os.environ.get(name) or os.environ.get(name.lower()) for name in _PROXIES)
    if endpoints and scheme == "s3" and not has_proxy and any(os.environ.get(name) for name in _OWN_KEYS):
        options["proxy_url"] = _NOBODY
        options["proxy_excludes"] = ",".join(endpoint.hostname or "" for endpoint in endpoints)
    return options


def bucket_is_missing(error: Exception) -> bool:
    """Whether the bucket itself, and not an object in it, does not exist."""
    return isinstance(error, FileNotFoundError) and _code(error) in _MISSING_BUCKET_CODES


def access_is_denied(error: Exception) -> bool:
    """Whether our credentials were accepted, and lack the right to do this."""
    return isinstance(error, PermissionDeniedError) and _code(error) in _DENIED_CODES


def explain(error: Exception) -> str:
    """What went wrong and what to check, without object names, keys and tokens: fit for logs."""
    if bucket_is_missing(error):
        return "the bucket does not exist: create it, or correct its name or the endpoint"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"access is denied ({_code(error) or 'no reason given'}): check the credentials and what they allow"
    return f"{_detail(error)}. {_ADVICE}"


_ADVICE = "Check the endpoint, the region and the credentials in the environment (AWS_*, GOOGLE_*, AZURE_*)"


def _code(error: Exception) -> str:
    match = re.search(r"<Code>(\w+)</Code>", str(error))
    return match.group(1) if match else ""


def _detail(error: Exception) -> str:
    # obstore's first line says it all, after the object's name; a debugging dump follows.
    line = str(error).partition("\n")[0].partition(": <")[0]
    line = line[max(0, line.find("Error performing")) :]
    # Paths may name a patient's file, queries may carry a signature.
    line = re.sub(r"(https?://[^/\s]+)\S*", r"\1", line)
    code = _code(error)
    return (f"{line} ({code})" if code else line)[:300]
