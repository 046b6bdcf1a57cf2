"""Access to the pages: for the person who started the command, or for the people whom a team's proxy names.

The command prints an address with a token behind `#`, which browsers do not send. The page's script gives the token
to the page's own server, once, for a session. The session's secret stays in the storage of this origin, host and port
together, and is a header of the script's own requests. A cookie would go to every server of the machine: cookies ignore
ports. A separate host for each page (`….localhost`) would have to stay secret to prevent this, and links in Dagster's
pages contain it.

A session belongs to one process: a program on the same port later gets a secret that is invalid.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dagster_llm_batch.errors import ConfigError

__all__ = ["SECRET_HEADER", "SESSION_PATH", "AccessGate", "Door", "link_to", "linkable"]

SECRET_HEADER = "x-review-secret"  # noqa: S105 - the name of a header
SESSION_PATH = "/session"

_STATIC = "/static/"
_MOST_NAME = 200
_MOST_SESSIONS = 100
_LONGEST_TOKEN = 500
_SESSION_SECONDS = 86_400.0
_SAFE = {"GET", "HEAD"}
_SCHEMES = {"http", "https"}
_OTHER_SITE = (
    "This was sent by a page of another site. Nothing was done. If it is your team's page, name its host and port with "
    "--allow-host."
)
_SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Review</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/review.css"><script src="/static/review.js" defer></script></head>
<body data-shell><main id="main"><h1>Review</h1><p class="quiet">Opening …</p>
<noscript>This page needs JavaScript.</noscript></main></body></html>"""
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "frame-src blob:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Door:
    """Tokens that open the pages once each, and the sessions of the browsers that came in by them.

    `hosts` are the names by which a proxy's users open the pages, with the port if it is unusual for the scheme. A
    session ends a day after its last use. `now` is a clock in seconds that never goes back.
    """

    user_header: str | None = None
    hosts: Sequence[str] = ()
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    now: Callable[[], float] = time.monotonic
    _used: set[str] = field(default_factory=set)
    _sessions: dict[bytes, float] = field(default_factory=dict)

    def token(self) -> str:
        """Return a new token, which opens once."""
        return token_of(self.key)

    def open(self, token: str) -> str | None:
        """Return the secret of a new session for this token; None if it opens nothing, or has opened before."""
        name, _, sign = token[:_LONGEST_TOKEN].partition(".")
        if not _is_equal(sign, _sign(self.key, name)) or name in self._used:
            return None
        self._used.add(name)
        secret = secrets.token_urlsafe(32)
        while len(self._sessions) >= _MOST_SESSIONS:
            self._sessions.pop(min(self._sessions, key=self._sessions.__getitem__))
        self._sessions[_digest(secret)] = self.now()
        return secret

    def person(self, connection: HTTPConnection) -> str | None:
        """Return who asks, or None for somebody unknown."""
        if self.user_header and (name := connection.headers.get(self.user_header, "").strip()):
            return name[:_MOST_NAME]
        digest = _digest(connection.headers.get(SECRET_HEADER, ""))
        since = self._sessions.get(digest)
        if since is None:
            return None
        if self.now() - since > _SESSION_SECONDS:
            self._sessions.pop(digest, None)
            return None
        self._sessions[digest] = self.now()
        return _own_name()


class AccessGate:
    """Lets in who may see the pages, and gives every answer the headers that keep rows from being more than text."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        answer = _with_headers(send)
        headers = connection.headers
        is_read = scope["method"] in _SAFE
        if is_read and scope["path"].startswith(_STATIC):
            await self._app(scope, receive, answer)
        elif not is_read and not self._is_own(headers):
            refusal = PlainTextResponse(_OTHER_SITE, 403)
            await refusal(scope, receive, answer)
        elif scope["path"] == SESSION_PATH and not is_read:
            await (await self._open(Request(scope, receive)))(scope, receive, answer)
        elif (person := self._door.person(connection)) is not None:
            scope.setdefault("state", {})["person"] = person
            await self._app(scope, receive, answer)
        # Without the secret a page is a shell, whose script asks for the page with it.
        elif is_read and _is_page(headers):
            await HTMLResponse(_SHELL)(scope, receive, answer)
        else:
            await PlainTextResponse(self._refusal(scope), 403)(scope, receive, answer)

    async def _open(self, request: Request) -> Response:
        body = await request.body()
        secret = self._door.open(body[:_LONGEST_TOKEN].decode("ascii", "replace"))
        if secret is None:
            return PlainTextResponse(f"This link was used before. {self._refusal(request.scope)}", 403)
        return JSONResponse({"secret": secret})

    def _refusal(self, scope: Scope) -> str:
        port = (scope.get("server") or ("", ""))[1]
        proxy = f" Or come by the proxy that sends {self._door.user_header}." if self._door.user_header else ""
        return (
            f"Open the link that `dagster-llm-batch review` printed.{proxy} A link opens once, and lasts until "
            f"the page is not used for a day. For a new one, run:\n\n"
            f"    dagster-llm-batch review --link --port {port}\n"
        )

    def _is_own(self, headers: Headers) -> bool:
        """Return whether one of our own pages sent this. Browsers name the sender of all that changes something."""
        scheme, _, authority = headers.get("origin", "").partition("://")
        # The proxy ends https, so this header is the only sign of it here.
        known = headers.get("x-forwarded-proto", "").partition(",")[0].strip()
        if not authority or scheme not in _SCHEMES or (known and scheme != known.lower()):
            return False
        # A proxy may use this machine's address instead of the name in the browser. Another port is another page.
        return authority == headers.get("host") or authority in self._door.hosts


def token_of(key: bytes) -> str:
    """Return a new token for the page that has this key."""
    name = secrets.token_urlsafe(12)
    return f"{name}.{_sign(key, name)}"


@contextmanager
def linkable(door: Door, port: int) -> Iterator[None]:
    """Let the user of this process make links to the page on this port by `link_to`, as long as it is served."""
    path = _key_path(port)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):
            path.unlink()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"key": door.key.hex()}, file)
    # Without a home that can be written to, the printed link is the only one.
    except (OSError, RuntimeError):
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            if json.loads(path.read_text())["key"] == door.key.hex():
                path.unlink()


def link_to(port: int) -> str:
    """Return a new link to the page that this user serves on a port. Raises ConfigError if the port has no page."""
    try:
        key = bytes.fromhex(json.loads(_key_path(port).read_text())["key"])
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"No page of yours is served on port {port}. Start one with `dagster-llm-batch review --port {port}`."
        ) from error
    return f"http://127.0.0.1:{port}/#token={token_of(key)}"


def _key_path(port: int) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "dagster-llm-batch" / f"review-{port}.json"


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                *((name.encode(), value.encode()) for name, value in _HEADERS.items()),
            ]
        await send(message)

    return send_with_headers


def _is_page(headers: Headers) -> bool:
    """Return whether a person opens this address as a page, and not as a part of another one."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _sign(key: bytes, name: str) -> str:
    return hmac.new(key, name.encode(), hashlib.sha256).hexdigest()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _is_equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())


def _own_name() -> str:
    try:
        return getpass.getuser()
    # A container may have no name for its user.
    except (KeyError, OSError):
        return "local"
