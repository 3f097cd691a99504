"""What can go wrong with a directory of masks."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.permissions import ordinary_user
from workers.errors import Unavailable, UserError
from workers.settings import StoreSettings
from workers.stores import MaskStore, mask_key, open_store

BATCH = [(mask_key(f"scan {number}", "file", "models"), b"mask" * 2000) for number in range(16)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MaskStore]:
    with open_store(StoreSettings(uri=(tmp_path / "masks").as_uri(), timeout_s=1)) as store:
        yield store


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_only_whole_masks_are_left_in_the_directory(store: MaskStore, tmp_path: Path) -> None:
    store.put_many(BATCH)

    assert {str(path.relative_to(tmp_path / "masks")) for path in files_in(tmp_path)} == {key for key, _ in BATCH}


def test_a_mask_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_counts_as_stored(
    store: MaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a power failure shows the difference; what is asked of the kernel, and in which order, can be seen."""
    done: list[tuple[str, Path]] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("synced", Path(f"/proc/self/fd/{descriptor}").readlink()))

    def watched_replace(source: Path, target: Path) -> Path:
        done.append(("named", source))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    store.put_many(BATCH)

    named = [place for what, place in done if what == "named"]
    assert len(named) == len(BATCH)
    assert all(done.index(("synced", place)) < done.index(("named", place)) for place in named)
    (folder,) = {(tmp_path / "masks" / key).parent for key, _ in BATCH}
    assert ("synced", folder) in done[done.index(("named", named[-1])) :]


def test_masks_get_the_permissions_that_the_umask_leaves(store: MaskStore, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        store.put_many(BATCH[:1])
    finally:
        os.umask(before)

    [mask] = files_in(tmp_path)
    assert mask.stat().st_mode & 0o777 == 0o640


def test_a_disk_that_takes_no_more_is_unavailable_and_keeps_nothing_half_written(
    store: MaskStore, tmp_path: Path
) -> None:
    # A limit on the size of files, which the kernel enforces as it does a full disk, in the middle of a write.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(Unavailable, match=r"File too large: .*ulimit"):
            store.put_many(BATCH)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert files_in(tmp_path) == []
    store.put_many(BATCH)
    assert len(files_in(tmp_path)) == 16


def test_a_directory_that_has_gone_is_unavailable_and_not_made_anew(store: MaskStore, tmp_path: Path) -> None:
    store.put_many(BATCH)
    shutil.rmtree(tmp_path / "masks")

    with pytest.raises(Unavailable, match="is the disk still mounted"):
        store.put_many(BATCH)

    assert not (tmp_path / "masks").exists()


def test_a_folder_of_masks_that_was_removed_is_made_again(store: MaskStore, tmp_path: Path) -> None:
    store.put_many(BATCH)
    shutil.rmtree(tmp_path / "masks" / BATCH[0][0].partition("/")[0])

    store.put_many(BATCH)

    assert len(files_in(tmp_path)) == 16


def test_a_directory_that_is_closed_to_the_worker_is_unavailable() -> None:
    with ordinary_user() as folder, open_store(StoreSettings(uri=(folder / "masks").as_uri(), timeout_s=1)) as store:
        store.put_many(BATCH)
        (folder / "masks" / ".incoming").chmod(0o500)

        with pytest.raises(Unavailable, match=f"Permission denied: user {os.geteuid()} needs the right to write there"):
            store.put_many(BATCH)


def test_a_name_that_is_taken_by_a_directory_is_unavailable(store: MaskStore, tmp_path: Path) -> None:
    (tmp_path / "masks" / BATCH[3][0]).mkdir(parents=True)

    with pytest.raises(Unavailable):
        store.put_many(BATCH)
    with pytest.raises(Unavailable):
        store.get(BATCH[3][0])


def test_a_path_under_a_file_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match=r"Not a directory|File exists"):
        open_store(StoreSettings(uri=(tmp_path / "file" / "masks").as_uri(), timeout_s=1))


def test_files_of_a_killed_process_are_removed_after_an_hour(tmp_path: Path) -> None:
    uri = (tmp_path / "masks").as_uri()
    # It dies while it waits for the disk, with a mask written and not yet named.
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal, sys\n"
            "from workers.settings import StoreSettings\n"
            "from workers.stores import open_store\n"
            "store = open_store(StoreSettings(uri=sys.argv[1], timeout_s=1))\n"
            "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
            "store.put_many([('a/b.png', b'mask')])\n",
            uri,
        ],
        check=False,
    )
    [left] = files_in(tmp_path)
    with open_store(StoreSettings(uri=uri, timeout_s=1)):
        kept = left.exists()

    two_hours_ago = time.time() - 7200
    os.utime(left, (two_hours_ago, two_hours_ago))
    with open_store(StoreSettings(uri=uri, timeout_s=1)):
        pass

    assert killed.returncode == -signal.SIGKILL
    assert kept
    assert files_in(tmp_path) == []
