"""The proxy does to its clients what a bad network does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from deploy.local.proxy import Proxy
from deploy.local.server import free_port


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as running:
        yield running


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def ask(connection: socket.socket, data: bytes = b"hello") -> bytes:
    connection.sendall(data)
    answer = b""
    while len(answer) < len(data):
        if not (chunk := connection.recv(65536)):
            raise ConnectionResetError
        answer += chunk
    return answer


def test_it_forwards_both_ways(proxy: Proxy) -> None:
    large = bytes(range(256)) * 10_000

    with connect(proxy) as connection:
        assert ask(connection) == b"hello"
        assert ask(connection, large) == large


def test_the_end_of_one_side_reaches_the_other(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        ask(connection)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_cut_resets_connections_old_and_new_until_healed(proxy: Proxy) -> None:
    with connect(proxy) as old:
        ask(old)
        proxy.cut()
        with pytest.raises(OSError, match="reset"):
            ask(old)
    with pytest.raises(OSError, match=r"reset|Broken pipe"), connect(proxy) as new:
        ask(new)
    proxy.heal()
    with connect(proxy) as healed:
        assert ask(healed) == b"hello"


def test_reset_spares_later_connections(proxy: Proxy) -> None:
    with connect(proxy) as old, connect(proxy) as other:
        ask(old)
        ask(other)
        proxy.reset()
        for each in (old, other):
            with pytest.raises(OSError, match="reset"):
                ask(each)
    with connect(proxy) as new:
        assert ask(new) == b"hello"


def test_hold_keeps_connections_open_and_silent_until_healed(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        ask(connection)
        proxy.hold()
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ask(connection, b"later")
        proxy.heal()
        connection.settimeout(5)
        assert connection.recv(5) == b"later"


def test_delay_makes_every_answer_late(proxy: Proxy) -> None:
    proxy.delay(0.2)
    with connect(proxy) as connection:
        started = time.monotonic()
        ask(connection)
        # There and back.
        assert time.monotonic() - started >= 0.4


def test_a_server_that_is_not_there_turns_clients_away() -> None:
    with (
        Proxy(free_port()) as proxy,
        pytest.raises(OSError, match=r"reset|Broken pipe"),
        connect(proxy) as connection,
    ):
        ask(connection)
