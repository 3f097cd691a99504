from __future__ import annotations

from pathlib import Path

import pytest

from workers.errors import ScanRejected
from workers.local_run import prefixes_of
from workers.messages import Reference
from workers.sources import Sources
from workers.submission import find_scans


def scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"scan")
    return path


def test_a_run_may_read_what_it_was_given_and_nothing_beside_it(tmp_path: Path) -> None:
    inside, single, linked = (scan(tmp_path / name) for name in ("given/a/b/1.png", "single/2.png", "far/3.png"))
    outside = scan(tmp_path / "private" / "key.pem")
    link = tmp_path / "given" / "link.png"
    link.symlink_to(linked)
    (tmp_path / "way").symlink_to(tmp_path / "single")
    found = find_scans([str(tmp_path / "given"), str(tmp_path / "way" / "2.png")])

    sources = Sources(100, allowed_prefixes=prefixes_of(found))

    for path in (inside, single, link, tmp_path / "way" / "2.png"):
        assert sources.read(Reference(uri=path.as_uri())) == b"scan"
    with pytest.raises(ScanRejected, match="may not read"):
        sources.read(Reference(uri=outside.as_uri()))


def test_files_in_very_many_folders_make_a_list_short_enough_for_a_workers_environment(tmp_path: Path) -> None:
    files = [scan(tmp_path / f"patient-{number}" / "1.png") for number in range(300)]

    assert prefixes_of(find_scans([str(path) for path in files])) == (tmp_path.as_uri(),)
