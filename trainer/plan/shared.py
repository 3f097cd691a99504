"""Plans in object storage, for clusters without a volume that several nodes can mount: `s3://bucket/prefix`, `gs://…`, `az://…`."""

from __future__ import annotations

from pathlib import Path

import obstore

from deploy.local.cache import cached
from trainer.durable import write_durably
from trainer.plan.cache import MANIFEST, PLAN, CachedPlan, Key
from workers.buckets import BUCKET_ERRORS, BUCKET_SCHEMES, bucket_is_missing, explain, open_bucket
from workers.errors import Unavailable, UserError

# A plan is some tens of megabytes.
_TIMEOUT_S = 300.0


class SharedPlans:
    """A folder of a bucket with plans in it, named as in the cache. Keys to it come from the cloud's usual environment."""

    def __init__(self, uri: str) -> None:
        """Raises UserError for what is no address of a bucket."""
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        if scheme not in BUCKET_SCHEMES or not bucket:
            raise UserError(f"{uri} is no address of a bucket: write s3://bucket/folder, gs://… or az://…")
        self._uri = uri.rstrip("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._bucket = open_bucket(scheme, bucket, _TIMEOUT_S)

    def fetch(self, key: Key) -> None:
        """Bring the plan with this key into the cache, if the bucket has it. Raises Unavailable."""
        names = (PLAN, MANIFEST)
        try:
            files = {name: obstore.get(self._bucket, self._path(key, name)).bytes().to_bytes() for name in names}
        except BUCKET_ERRORS as problem:
            if isinstance(problem, FileNotFoundError) and not bucket_is_missing(problem):
                return
            raise self._unavailable("read from", problem) from problem

        def make(folder: Path) -> None:
            for name in names:
                write_durably(folder / name, files[name])

        def intact(folder: Path) -> bool:
            try:
                return CachedPlan.load(folder).manifest.key == key and bool(CachedPlan.load(folder).read())
            except UserError:
                return False

        cached(f"plans/{key.name}", make, intact)

    def send(self, plan: CachedPlan) -> None:
        """Put the plan there. Its manifest comes last: whoever finds that finds the plan. Raises Unavailable."""
        try:
            for name in (PLAN, MANIFEST):
                obstore.put(self._bucket, self._path(plan.manifest.key, name), (plan.folder / name).read_bytes())
        except BUCKET_ERRORS as problem:
            raise self._unavailable("written to", problem) from problem

    def _path(self, key: Key, name: str) -> str:
        return f"{self._prefix}{key.name}/{name}"

    def _unavailable(self, what: str, problem: Exception) -> Unavailable:
        return Unavailable("store", f"plans can't be {what} {self._uri}: {explain(problem)}")
