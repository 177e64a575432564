"""One connection: uvicorn's HTTP/1.1 with an end to every wait for the other side.

    REQUEST_S    for a request's head, from its first byte on or from the connection's beginning; and for what still comes of a
                 request that is answered already
    STALLED_S    for a reader who does not take what he asked for; his answer is cancelled, and his model may leave memory

A peer that is not this machine has at most PEER_CONNECTIONS, so that one alone cannot use up all file descriptors.

What it gives up: a reader slower than some hundred bytes a second is taken for one who has left.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from gangpao.machine import is_loopback

REQUEST_S = 30.0
STALLED_S = 120.0
PEER_CONNECTIONS = 512


class _Deadline:
    """A call that comes some seconds after the first start, unless it is stopped before."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._over)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self) -> None:
        self._timer = None
        self._call()


class Protocol(H11Protocol):
    """See the module."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._request = _Deadline(self._no_request)
        self._reader = _Deadline(self._no_reader)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._too_many():
            transport.close()
        self._request.start(REQUEST_S)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._idle:
            self._request.start(REQUEST_S)
            return
        self._request.stop()
        if not self.flow.write_paused:
            self._reader.stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.start(STALLED_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._reader.start(STALLED_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._request.stop()
        self._reader.stop()
        super().connection_lost(exc)
        # uvicorn 0.54 forgets it where the client reset the connection, and keeps all of it in memory until the time is over.
        self._unset_keepalive_if_required()

    @property
    def peer(self) -> str:
        """The address of the other side."""
        return str(self.client[0]) if self.client else "localhost"

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _no_request(self) -> None:
        if self._idle:
            self.transport.close()

    def _no_reader(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # closing would wait for him

    def _too_many(self) -> bool:
        if len(self.connections) <= PEER_CONNECTIONS or is_loopback(self.peer):
            return False
        return len([c for c in self.connections if isinstance(c, Protocol) and c.peer == self.peer]) > PEER_CONNECTIONS
