"""Child processes, the cache, verified jars: with small real servers, processes and files."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import cache, maven, server, stack, triton_environment
from deploy.local.kafka import Kafka
from deploy.local.server import Report, Server, ServerError, free_port, free_ports, start_together
from deploy.local.triton import Triton
from tests.conftest import wait_for

TIMEOUT_S = 10.0


class Web(Server):
    """Python's own web server."""

    name = "web"

    def __init__(self, folder: Path, ports: list[int] | None = None) -> None:
        super().__init__(folder)
        self.port = 0
        self._ports = ports or []

    def prepare(self) -> list[str]:
        if not self._same_address:
            self.port = self._ports.pop(0) if self._ports else free_port()
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(self.port)]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Script(Server):
    """A Python program that is ready when the file `ready` is there."""

    name = "script"

    def __init__(self, folder: Path, program: str) -> None:
        super().__init__(folder)
        self._program = program

    def prepare(self) -> list[str]:
        return [
            sys.executable,
            "-c",
            f"from pathlib import Path; import signal, subprocess, sys, time; {self._program}",
        ]

    def ready(self) -> bool:
        return (self.folder / "ready").exists()


def processes_in(folder: Path) -> list[int]:
    """Processes that work in the folder, as servers and all that they start do."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:  # gone meanwhile, or a zombie
            continue
    return found


def test_a_server_serves_and_leaves_no_process(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        assert processes_in(tmp_path) == [web.pid]
        web.check()

    assert processes_in(tmp_path) == []
    with pytest.raises(ServerError, match="web is not running"):
        web.check()


def test_an_exception_stops_the_server(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Web(tmp_path):
        raise KeyboardInterrupt

    assert processes_in(tmp_path) == []


def test_a_server_that_dies_says_which_why_and_where_its_log_is(tmp_path: Path) -> None:
    script = Script(tmp_path, "sys.exit('no such colour: mauve')")

    with pytest.raises(ServerError) as caught:
        script.start()

    assert "script died (exit status 1)" in str(caught.value)
    assert str(tmp_path / "script.log") in str(caught.value)
    assert "no such colour: mauve" in str(caught.value)


def test_a_missing_setpriv_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ServerError, match="web can't be started without the program setpriv: install util-linux"):
        Web(tmp_path).start()


def test_an_earlier_start_is_not_blamed(tmp_path: Path) -> None:
    (tmp_path / "script.log").write_text("the trouble of yesterday: Address already in use\n")

    with pytest.raises(ServerError) as caught:
        Script(tmp_path, "sys.exit('the trouble of today')").start()

    assert "yesterday" not in str(caught.value)
    assert (tmp_path / "script.log").read_text().count("today") == 1


def test_a_server_that_is_never_ready_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="script was not ready in time"):
        Script(tmp_path, "time.sleep(60)").start(timeout_s=0.3)

    assert processes_in(tmp_path) == []


def test_a_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with Web(tmp_path, [taken]) as web:
            assert web.port != taken
            assert processes_in(tmp_path) == [web.pid]


def test_a_server_that_never_gets_a_port_gives_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        web = Web(tmp_path, [other.getsockname()[1]] * 10)
        with pytest.raises(ServerError, match="Address already in use"):
            web.start()

    assert web.log.read_text().count("Address already in use") == server.START_ATTEMPTS


def test_a_restarted_server_keeps_its_address(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        before = web.port, web.pid
        web.restart()

        assert web.port == before[0]
        assert web.pid != before[1]


def test_a_stopped_server_has_time_to_finish(tmp_path: Path) -> None:
    finish = "lambda *_: (time.sleep(0.3), Path('finished').touch(), sys.exit())"
    script = Script(tmp_path, f"signal.signal(signal.SIGTERM, {finish}); Path('ready').touch(); time.sleep(60)")
    with script:
        pass

    assert (tmp_path / "finished").exists()


def test_a_server_that_ignores_the_request_to_stop_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.2)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = f"import signal, time; {deaf}; time.sleep(60)"
    script = Script(
        tmp_path,
        f"{deaf}; subprocess.Popen([sys.executable, '-c', {child!r}]); Path('ready').touch(); time.sleep(60)",
    )
    with script:
        assert len(processes_in(tmp_path)) == 2

    wait_for(lambda: processes_in(tmp_path) == [], "end of the processes", TIMEOUT_S)


def test_servers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from tests.test_local_server import Web
with Web(Path({str(tmp_path)!r})):
    print("up", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert processes_in(tmp_path) != []
        parent.kill()

    wait_for(lambda: processes_in(tmp_path) == [], "end of the server", TIMEOUT_S)


def test_servers_start_together_and_one_failure_stops_all_at_once(tmp_path: Path) -> None:
    slow = Script(tmp_path / "slow", "time.sleep(60)")
    broken = Script(tmp_path / "broken", "sys.exit('broken for good')")
    web = Web(tmp_path / "web")
    started = time.monotonic()

    with pytest.raises(ServerError, match="broken for good"):
        start_together([web, slow, broken])

    assert time.monotonic() - started < TIMEOUT_S
    assert processes_in(tmp_path) == []


def test_a_server_that_dies_while_another_starts_is_noticed(tmp_path: Path) -> None:
    web, slow = Web(tmp_path / "web"), Script(tmp_path / "slow", "time.sleep(60)")

    with pytest.raises(ServerError, match="web died \\(killed by SIGKILL\\)"):
        start_together([web, slow], on_ready=lambda server: os.kill(server.pid, signal.SIGKILL))

    assert processes_in(tmp_path) == []


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_failed_download_is_not_waited_for_by_others(tmp_path: Path) -> None:
    never = threading.Event()

    class Slow(Web):
        def provision(self, report: Report = server.silent) -> None:
            never.wait()

    class Unreachable(Web):
        def provision(self, report: Report = server.silent) -> None:
            raise ServerError("no network")

    try:
        with pytest.raises(ServerError, match="no network"):
            stack._provision([Slow(tmp_path), Unreachable(tmp_path)], server.silent)
    finally:
        never.set()


def test_kafka_failures_are_explained_without_the_stack_trace(tmp_path: Path) -> None:
    log = (
        "2026-01-01 INFO KafkaRaftServer: starting\n2026-01-01 ERROR Kafka$: Exiting Kafka due to fatal exception\n"
        "org.apache.kafka.common.KafkaException: Socket server failed to bind\n\tat kafka.network.Acceptor.open\n"
        "Caused by: java.net.BindException: Address already in use\n"
    )

    lines = Kafka(tmp_path).explanation(log)

    assert [line.split(":")[0] for line in lines] == [
        "2026-01-01 ERROR Kafka$",
        "org.apache.kafka.common.KafkaException",
        "Caused by",
    ]


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "| Model | Version | Status                                 |\n"
            "| bad   | 1       | UNAVAILABLE: Internal: no module 'cv3' |\n"
            "|       |         | At:                                    |\n"
            "|       |         |   <frozen importlib>(1): load          |\n"
            "| good  | 1       | READY                                  |\n",
            ["model bad, version 1: UNAVAILABLE: Internal: no module 'cv3' At:"],
        ),
        (
            'E0101 1 server.cc:241] "CudaDriverHelper has not been initialized."\n'
            'E0101 1 ensemble_scheduler.cc:1468] "unable to create stream for tumor_segmentation: CUDA driver version '
            'is insufficient for CUDA runtime version"\n'
            "I0101 1 server.cc:1] fine\nerror: creating server: Internal - failed to stat file /models\n",
            ["error: creating server: Internal - failed to stat file /models"],
        ),
        ("Segmentation fault\n", ["Segmentation fault"]),
    ],
)
def test_triton_failures_name_the_model_or_else_the_error(log: str, expected: list[str], tmp_path: Path) -> None:
    assert Triton(tmp_path, tmp_path).explanation(log) == expected


def test_triton_without_a_python_that_it_can_use_says_which_to_install(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_environment, "_PYTHONS", ((3, 99),))

    with pytest.raises(ServerError, match=r"triton needs Python 3\.99 .* install one of them"):
        triton_environment.triton_environment()

    assert [path for path in private_cache.rglob("*") if path.is_dir()] == [private_cache / "triton"]


def test_triton_that_can_not_be_installed_says_what_the_installer_said(
    private_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text(f"numpy==1.26.4 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(triton_environment, "_lock_files", lambda: [wrong])

    with pytest.raises(ServerError, match=r"(?s)triton can't be installed: .*[Hh]ash"):
        triton_environment.triton_environment()


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MRISTREAM_CACHE", str(folder))
    return folder


def test_a_cached_folder_is_made_once(private_cache: Path) -> None:
    made: list[Path] = []

    first = cache.cached("thing", made.append)
    second = cache.cached("thing", made.append)

    assert first == second == private_cache / "thing"
    assert len(made) == 1


def test_a_cached_folder_that_is_no_longer_intact_is_made_again(private_cache: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "file").write_text("whole")

    def intact(folder: Path) -> bool:
        return (folder / "file").read_text() == "whole"

    (cache.cached("thing", make, intact) / "file").write_text("damaged")

    assert (cache.cached("thing", make, intact) / "file").read_text() == "whole"


def test_a_failed_making_keeps_nothing(private_cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ServerError("no network")

    with pytest.raises(ServerError, match="no network"):
        cache.cached("thing", fail)

    assert [path.name for path in private_cache.iterdir()] == ["thing.lock"]


def test_two_processes_fill_the_cache_once(private_cache: Path) -> None:
    program = """
import os, time
from deploy.local.cache import cached
def make(folder):
    time.sleep(0.3)
    (folder / str(os.getpid())).touch()
print(len(list(cached("thing", make).iterdir())))
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]

    assert [process.communicate(timeout=TIMEOUT_S)[0] for process in processes] == ["1\n"] * 3
    assert sorted(path.name for path in private_cache.iterdir()) == ["thing", "thing.lock"]


@pytest.fixture
def maven_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a Maven repository on this machine; what is downloaded goes to a private cache."""
    folder = tmp_path / "maven"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        monkeypatch.setenv("MRISTREAM_MAVEN", f"http://127.0.0.1:{web.server_port}")
        yield folder
        web.shutdown()


@pytest.fixture
def pins(maven_repository: Path, private_cache: Path, tmp_path: Path) -> Path:
    """A list with the one jar that the repository has."""
    jar = maven_repository / "org/example/thing/1.0/thing-1.0.jar"
    jar.parent.mkdir(parents=True)
    jar.write_bytes(b"bytes of a jar")
    pins = tmp_path / "thing.txt"
    pins.write_text(f"# a thing\norg.example:thing:1.0 {hashlib.sha256(b'bytes of a jar').hexdigest()}\n")
    return pins


def test_jars_are_downloaded_once_and_then_need_no_network(pins: Path, maven_repository: Path) -> None:
    said: list[str] = []

    first = maven.classpath(pins, said.append)
    (maven_repository / "org").rename(maven_repository / "gone")
    second = maven.classpath(pins, said.append)

    assert first == second
    assert Path(first).read_bytes() == b"bytes of a jar"
    assert said == ["downloading thing (once)…"]


def test_a_damaged_jar_in_the_cache_is_downloaded_again(pins: Path) -> None:
    jar = Path(maven.classpath(pins))
    jar.write_bytes(b"bytes of another")

    assert Path(maven.classpath(pins)).read_bytes() == b"bytes of a jar"


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_not_kept(
    pins: Path, maven_repository: Path, private_cache: Path
) -> None:
    next(maven_repository.rglob("*.jar")).write_bytes(b"bytes of an attacker")

    with pytest.raises(ServerError, match=r"org\.example:thing:1\.0 is not the jar that was pinned"):
        maven.classpath(pins)

    assert list(private_cache.rglob("*.jar")) == []


def test_a_jar_that_can_not_be_downloaded_says_what_to_check(pins: Path, maven_repository: Path) -> None:
    next(maven_repository.rglob("*.jar")).unlink()

    with pytest.raises(ServerError, match=r"org\.example:thing:1\.0 could not be downloaded.*proxy"):
        maven.classpath(pins)
