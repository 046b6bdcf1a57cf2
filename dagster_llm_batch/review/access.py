"""Who may see the pages: whoever started the command, or whom a team's proxy names.

The command prints an address with a token. The token works once and becomes a cookie that no other site's page can use.
Behind a proxy that knows its people, a header that the operator names says who is there; the server listens on loopback
alone, so that nobody but the proxy, and who is on this machine, can send it.
"""

from __future__ import annotations

import getpass
import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AccessGate", "Door"]

_COOKIE = "llm_batch_review"
_MOST_NAME = 200
_SAFE = {"GET", "HEAD"}
_ONCE_MORE = '<!doctype html><meta http-equiv="refresh" content="0"><title>Opening</title>'
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Door:
    """The token that opens the pages once, and the cookie of those who came in."""

    user_header: str | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    is_used: bool = False

    def person(self, connection: HTTPConnection) -> str | None:
        """Return who asks, or None where nobody may be told."""
        if self.user_header and (name := connection.headers.get(self.user_header, "").strip()):
            return name[:_MOST_NAME]
        try:
            given = SimpleCookie(connection.headers.get("cookie", "")).get(_COOKIE)
        except CookieError:
            return None
        if given is None or not _is_equal(given.value, self.cookie):
            return None
        return _own_name()

    def take(self, token: str) -> bool:
        """Return whether this token opens; it does so once."""
        if self.is_used or not _is_equal(token, self.token):
            return False
        self.is_used = True
        return True


class AccessGate:
    """Let in who may see the pages, and give every answer the headers that keep rows from being more than text."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        answer = _with_headers(send)
        person = self._door.person(connection)
        if person is None:
            await self._let_in(scope, receive, answer)
        elif scope["method"] not in _SAFE and not _is_own(connection.headers):
            refusal = PlainTextResponse("This was sent by a page of another site. Nothing was done.", 403)
            await refusal(scope, receive, answer)
        else:
            scope.setdefault("state", {})["person"] = person
            await self._app(scope, receive, answer)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        # A link from Dagster's page, on another host: browsers keep strict cookies from such a request. They send them
        # when our own page asks once more, which then is answered as any other.
        if scope["method"] == "GET" and headers.get("sec-fetch-site") == "cross-site" and _is_page(headers):
            await HTMLResponse(_ONCE_MORE)(scope, receive, send)
            return
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        token = next((value for name, value in asked if name == "token"), "")
        if scope["method"] == "GET" and token and self._door.take(token):
            rest = urlencode([(name, value) for name, value in asked if name != "token"])
            # A path that starts with // would be an address of another host.
            path = "/" + scope["path"].lstrip("/")
            response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            response.set_cookie(_COOKIE, self._door.cookie, httponly=True, samesite="strict", path="/")
            await response(scope, receive, send)
            return
        used = " That address works once, and was used." if self._door.is_used else ""
        who = f", or come by the proxy that sends {self._door.user_header}" if self._door.user_header else ""
        words = f"Open the address that `dagster-llm-batch review` printed{who}.{used} Start it again for a new one.\n"
        await PlainTextResponse(words, 403)(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                *((name.encode(), value.encode()) for name, value in _HEADERS.items()),
            ]
        await send(message)

    return send_with_headers


def _is_own(headers: Headers) -> bool:
    """Return whether one of our own pages sent a form. Browsers name the sender of all that changes something."""
    origin = headers.get("origin", "")
    return origin.partition("://")[2] == headers.get("host")


def _is_page(headers: Headers) -> bool:
    """Return whether a person opens this as a page, and no other page loads it as a part of itself."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _is_equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())


def _own_name() -> str:
    try:
        return getpass.getuser()
    # A container may have no name for its user.
    except (KeyError, OSError):
        return "local"
