"""A network that can be cut: a TCP proxy in front of one server, and what a bad network does to those behind it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

_CHUNK_BYTES = 65536
# close() then sends a reset instead of a polite end.
_LINGER_NOT = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`. A context manager; each has a thread of its own.

    `target` may be set before any client connects. The port is ours from the start: whoever connects before the
    target listens is turned away. What it does to its clients, until `heal`:

    - `cut`: every connection is reset, new ones too;
    - `hold`: bytes go nowhere, while connections stay open, as behind a dead router;
    - `delay(seconds)`: bytes arrive later.

    `reset` closes today's connections only. All methods may be called from any thread, and return when it is done.
    """

    def __init__(self, target: int = 0) -> None:
        self.target = target
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._cut = False
        self._delay_s = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.heal()

    def cut(self) -> None:
        """Reset every connection, and every new one at once."""
        self._do(self._set(cut=True, flows=True, delay_s=0.0))

    def hold(self) -> None:
        """Swallow nothing and deliver nothing: connections stay open and silent."""
        self._do(self._set(cut=False, flows=False, delay_s=0.0))

    def delay(self, seconds: float) -> None:
        """Deliver every chunk that much later, in both directions."""
        self._do(self._set(cut=False, flows=True, delay_s=seconds))

    def heal(self) -> None:
        """Forward at once again. What was held is delivered now."""
        self._do(self._set(cut=False, flows=True, delay_s=0.0))

    def reset(self) -> None:
        """Reset the connections that are open; new ones are served."""
        self._do(self._reset())

    def close(self) -> None:
        """Reset everything and let go of the port. Safe to call twice."""
        if self._loop.is_closed():
            return
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _set(self, *, cut: bool, flows: bool, delay_s: float) -> None:
        self._cut, self._delay_s = cut, delay_s
        if flows:
            self._flows.set()
        else:
            self._flows.clear()
        if cut:
            await self._reset()

    async def _reset(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _end(self) -> None:
        self._server.close()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            _reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(writer)
            return
        ends = {writer, server_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._forward(reader, server_writer))
                ways.create_task(self._forward(server_reader, writer))
        except* OSError:
            pass  # one side is gone, and so is the other
        finally:
            self._writers -= ends
            for each in ends:
                _reset(each)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._flows.wait()
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()
