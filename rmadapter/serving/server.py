"""uvicorn's server, which a second Ctrl-C ends at once on every version of Python."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

PAUSE = 0.05  # seconds between looks at whether it was told twice


class Server(uvicorn.Server):
    """Cancels what is being answered when it is told twice to end.

    From Python 3.12 on a listening socket counts as closed only once its connections are, and uvicorn waits for that
    though it was told twice: for a client that sends half of a request, until the request's time is over.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as ``uvicorn.Server`` does; told twice, requests are cancelled, which answers them with 503."""
        ending = asyncio.ensure_future(super().shutdown(sockets))
        while not ending.done() and not self.force_exit:
            await asyncio.wait([ending], timeout=PAUSE)
        for task in self.server_state.tasks if self.force_exit else ():
            task.cancel()
        await ending
