from __future__ import annotations

import errno
from pathlib import Path

import pytest

from trainer.durable import write_durably


def test_a_disk_that_is_full_leaves_the_file_before_and_no_piece_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_bytes(b"before")
    monkeypatch.setattr("trainer.durable.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(tmp_path / "file", b"after")

    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
