"""What `mristream run` makes of its input and of what goes wrong, with stand-ins for servers that fail on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.local.server import ServerError
from tests.test_submission import RecordingProducer
from workers import local_run
from workers.cli import main
from workers.errors import ScanRejected
from workers.local_run import WORKER_STARTS, RunOutcome, prefixes_of
from workers.messages import Reference, ScanResult, Status
from workers.settings import KafkaSettings
from workers.sources import Sources
from workers.submission import Found, find_scans


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


class Worker:
    """Dies at once, however often it is started, if it is `mortal`."""

    log = Path("worker.log")

    def __init__(self, *, mortal: bool = False) -> None:
        self.mortal = mortal
        self.starts = 1

    def alive(self) -> bool:
        return not self.mortal

    def check(self) -> None:
        raise ServerError("worker died")

    def stop(self) -> None:
        pass

    def restart(self) -> None:
        self.starts += 1


class Stack:
    """Servers that never fail."""

    def check(self) -> None:
        pass


Start = Callable[..., Any]


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """Two scans, and a folder that can't be read."""
    found = find_scans([str(scan(tmp_path / "scans" / name)) for name in ("1.png", "2.png")])
    found.unreadable.append("closed: Permission denied")
    return found


@pytest.fixture
def start(found: Found, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Makes a run in which a worker finishes the first `finished` scans, and says no more."""

    def build(worker: Worker, *, finished: int = 0, refused: tuple[bytes, ...] = ()) -> Any:
        producer = RecordingProducer(refused=refused)

        def results(kafka: KafkaSettings, *, follow: bool) -> Iterator[ScanResult | None]:
            run._all_sent.wait(10)
            for scan_id in list(run._submitter.queued)[:finished]:
                yield ScanResult(scan_id=scan_id, status=Status.NOT_BRAIN_MRI)
            while True:
                yield None

        monkeypatch.setattr(local_run, "make_producer", lambda kafka: producer)
        monkeypatch.setattr(local_run, "read_results", results)
        servers: tuple[Any, ...] = (Stack(), worker)
        run = local_run._Run(found, KafkaSettings(), *servers, print, lambda done, total: None)
        return run

    return build


def test_a_run_ends_when_each_scan_has_its_result_and_names_what_could_not_be_read(
    start: Start, tmp_path: Path
) -> None:
    outcome = start(Worker(), finished=2).stream(tmp_path / "results.jsonl")

    assert len(outcome.results) == 2
    assert outcome.missing == ["closed: Permission denied"]


def test_a_run_in_which_nothing_moves_is_given_up_and_names_the_scans_without_a_result(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_run, "STALL_TIMEOUT_S", 0.1)

    outcome = start(Worker(), finished=1).stream(tmp_path / "results.jsonl")

    assert outcome.missing == [f"{tmp_path / 'scans' / '2.png'}: no result came", "closed: Permission denied"]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_a_scan_that_kafka_refuses_is_missing_and_not_waited_for(start: Start, found: Found, tmp_path: Path) -> None:
    found.submissions[1] = type(found.submissions[1])(
        found.submissions[1].uri, found.submissions[1].path, patient_key="refused"
    )

    outcome = start(Worker(), finished=1, refused=(b"refused",)).stream(tmp_path / "results.jsonl")

    assert len(outcome.missing) == 2
    assert outcome.missing[0].startswith(f"{tmp_path / 'scans' / '2.png'}: Kafka did not take it")


def test_a_worker_that_dies_again_and_again_ends_the_run_with_what_there_is(start: Start, tmp_path: Path) -> None:
    worker = Worker(mortal=True)

    with pytest.raises(ServerError, match="worker died"):
        start(worker, finished=1).stream(tmp_path / "results.jsonl")

    assert worker.starts == WORKER_STARTS
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(("missing", "status"), [([], 0), (["2.png: no result came"], 1)])
def test_the_exit_code_tells_whether_every_input_has_a_result(
    missing: list[str], status: int, found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_run, "run_scans", lambda *_, **__: RunOutcome([], missing, 1.0))

    done = CliRunner().invoke(main, ["run", str(tmp_path / "scans"), "--out", str(tmp_path / "out")])

    assert done.exit_code == status, done.output
    assert all(f"no result: {sentence}" in done.stderr for sentence in missing)
