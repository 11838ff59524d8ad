"""Who may ask, by the headers that a browser sends, and the headers that keep the page to itself.

A server on loopback is within reach of every page that is open in the browser beside it. One that has its own name lead
to loopback is told by the ``Host`` that it asks for, and one that sends forms across is told by its ``Origin``.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class OriginGuard:
    """ASGI middleware: refuses other hosts' names and other pages, and adds ``HEADERS`` to every answer.

    Args:
        app: what it stands in front of.
        hosts: names and addresses that ``Host`` may have, in small letters; None for any.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; anything else goes on as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        answer = self._app if refusal is None else JSONResponse({"error": refusal}, 403)
        await answer(scope, receive, send_guarded)

    def _refusal(self, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return f"host is {host[:80]!r}; valid: {', '.join(sorted(self._hosts))}"
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host.lower():
            return f"origin is {origin[:80]!r}; valid: the page of this server"
        return None


def _place(origin: str) -> str | None:
    """The name or address in an ``Origin``, with its port; None where it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _name(host: str) -> str | None:
    """The name or address in a ``Host``, without its port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
