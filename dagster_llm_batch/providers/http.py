"""Rules for HTTP requests: credentials go to the configured origin only, with any answer of a server.

    to the configured origin        everything: scheme, host and port equal the configured address's
    to another origin, over https   downloads without credentials, and uploads where the vendor's protocol names their
                                    address (a resumable upload's session); each without our headers
    to another origin, over http    nothing
    a redirect with a body          nothing, as row data would go to an address that the user did not configure

SDKs follow redirects and addresses in replies with the headers that they send to the vendor. They drop only
`Authorization` on the way, and keep `x-api-key` and headers of the user. So the headers for other hosts are a list of
names, and every other header counts as a credential. The rules work where the SDKs' own transports send: `guard_hooks`
are event hooks of httpx and httpx2, `guard_session` is for requests. botocore follows only redirects to another region
of S3, whose address it makes on its own.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from dagster_llm_batch.core.address_secrets import hide_secrets, secret_parts
from dagster_llm_batch.core.memory import uncollected
from dagster_llm_batch.errors import ConfigError, CredentialsError, MissingExtraError, RefusedError
from dagster_llm_batch.providers.dialogue import record_client
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.providers.time_limits import limit_client, limit_pools

__all__ = [
    "Origin",
    "check_address",
    "guard_client",
    "guard_hooks",
    "guard_session",
    "importing_sdk",
    "listed_since",
    "load_httpx",
]

_MARGIN = timedelta(minutes=10)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def listed_since(sent_at: datetime, headers: Any) -> datetime:
    """Return the earliest time, by the vendor's clock, at which a batch that we sent at this time can be created.

    Older batches can be skipped. If our clock is ahead of the vendor's, by the header `Date` of its answer, the time is
    earlier by the same amount, and by a margin: a missed batch is paid twice. If the time is in the future, its clock
    was wrong by an unknown amount: then every batch is checked.
    """
    if sent_at > datetime.now(UTC) + _MARGIN:
        return _LONG_AGO
    try:
        vendor_time = parsedate_to_datetime(headers["date"])
        ahead = max(timedelta(), datetime.now(UTC) - vendor_time.astimezone(UTC))
    except (KeyError, TypeError, ValueError):
        # The answer has no readable date.
        ahead = timedelta()
    return sent_at - ahead - _MARGIN


def check_address(url: str, what: str, example: str = "https://host/path") -> SplitResult:
    """Split the web address in the setting `what`. Raises ConfigError for text that is not such an address."""
    if "@" in url:
        raise ConfigError(
            f"The {what} holds a user name or a password. They would be sent in the place of the credentials, and "
            f"shown wherever the address is. Leave them out; it looks like {example!r}."
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    # `urlsplit` drops line breaks, and the called address keeps them
    has_space = any(char.isspace() for char in url)
    if parts.scheme not in ("http", "https") or not parts.hostname or has_space:
        raise ConfigError(f"The {what} {hide_secrets(url)!r} is no web address; it looks like {example!r}.")
    if "?" in url or "#" in url:
        # The part after it is hidden: it may be a key.
        shown = hide_secrets(re.split("[?#]", url)[0])
        raise ConfigError(
            f"The {what} {shown!r} goes on with '?' or '#'. Each call's path is put at its end, so "
            f"every call would fail. Leave that out; it looks like {example!r}. Azure OpenAI needs no api-version at "
            "'https://RESOURCE.openai.azure.com/openai/v1'."
        )
    return parts


_PORTS = {"http": 80, "https": 443}
# The only headers that another server may get. The list holds allowed headers, since secret ones cannot be listed: a
# header of a user or of an SDK's next version may hold a credential.
_NOT_SECRET = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-range",
        "content-type",
        "host",
        "range",
        "transfer-encoding",
        "user-agent",
        # the SDKs of OpenAI and Anthropic use it to read the answer
        "x-stainless-raw-response",
    }
)
# command and offset of a resumable upload
_UPLOAD_STEPS = "x-goog-upload-"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNAUTHORIZED = frozenset({401, 403})


# Those of them that write the whole address, httpx at INFO, the others at DEBUG.
_ADDRESS_LOGGERS = ("httpx", "httpx2", "openai._base_client", "anthropic._base_client", "urllib3.connectionpool")


class Origin:
    """The one place that gets the credentials, and the rules for every other.

    `takes_uploads`: the vendor's protocol names addresses elsewhere that request files are uploaded to.
    """

    def __init__(self, url: str, *, takes_uploads: bool = False) -> None:
        self._origin = _origin_of(url)
        self._takes_uploads = takes_uploads
        self.secrets = secret_parts(url)
        """The keys in the address."""

    def is_of(self, url: str) -> bool:
        """Return whether the address is of this origin."""
        return _origin_of(url) == self._origin

    def check_request(self, method: str, url: str, headers: MutableMapping[str, str]) -> None:
        """Remove disallowed headers from a request to another origin. Raises RefusedError if it may get nothing.

        Called for each request right before it is sent, redirects included.
        """
        origin = _origin_of(url)
        if origin == self._origin:
            return
        if origin[0] != "https":
            raise RefusedError(
                f"{self} answered with an address at {_shown(origin)}, which is another server, over plain http. "
                "Nothing was sent there. Use https, or give that server's address as the provider's own."
            )
        if method not in ("GET", "HEAD") and not self._takes_uploads:
            raise RefusedError(
                f"{self} answered a {method} with an address at {_shown(origin)}, which is another server. Nothing was "
                "sent there: requests and credentials go to the configured address alone. Correct that address."
            )
        for name in list(headers):
            if name.lower() not in _NOT_SECRET and not name.lower().startswith(_UPLOAD_STEPS):
                del headers[name]

    def check_response(self, method: str, url: str, status: int, location: str | None) -> None:
        """Raise RefusedError for a redirect that would take a body to another origin.

        Raises CredentialsError if another origin asks for credentials: none were sent to it.
        """
        if location and status in _REDIRECTS and method not in ("GET", "HEAD"):
            target = _origin_of(urljoin(url, location))
            if target != _origin_of(url):
                raise RefusedError(
                    f"{_shown(_origin_of(url))} redirects a {method} to {_shown(target)}, which is another server. It "
                    "was not followed: requests and credentials go to the configured address alone. If that server is "
                    "the right one, configure its address."
                )
        # this 401 does not concern the configured credentials, since none were sent: they must not count as wrong
        if status in _UNAUTHORIZED and (origin := _origin_of(url)) != self._origin:
            raise CredentialsError(
                f"{self} sent us to {_shown(origin)}, which asks for credentials (HTTP {status}). It was given none: "
                "they go to the configured address alone. If that server is the right one, configure its address."
            )

    def __str__(self) -> str:
        return _shown(self._origin)


def guard_hooks(origin: Origin) -> dict[str, list[Callable[[Any], None]]]:
    """Make event hooks for a client of httpx or httpx2, which calls them at each step of a chain of redirects."""

    def request(request: Any) -> None:
        origin.check_request(request.method, str(request.url), request.headers)

    def response(response: Any) -> None:
        sent = response.request
        origin.check_response(sent.method, str(sent.url), response.status_code, response.headers.get("location"))

    return {"request": [request], "response": [response]}


def guard_client(client: Any, origin: Origin, timeout_seconds: float) -> Any:
    """Make a client of httpx or httpx2 keep the rules, by hooks after its own, and abandon answers that are slow."""
    limit_client(client, timeout_seconds)
    hooks = client.event_hooks
    client.event_hooks = {name: [*hooks.get(name, []), *more] for name, more in guard_hooks(origin).items()}
    record_client(client, origin.secrets)
    _hide_in_logs(origin.secrets)
    return client


class _WithoutSecrets(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.secrets: frozenset[str] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the keys in addresses. Keep every record."""
        record.msg, record.args = Mask(self.secrets).text(record.getMessage()), ()
        return True


_LOGGED = _WithoutSecrets()


def _hide_in_logs(secrets: Iterable[str]) -> None:
    """Mask these in the records of HTTP clients and SDKs that show the address of each call."""
    if _LOGGED.secrets.issuperset(secrets):
        return
    _LOGGED.secrets |= set(secrets)
    for name in _ADDRESS_LOGGERS:
        # the same filter is added once only
        logging.getLogger(name).addFilter(_LOGGED)


@contextmanager
def importing_sdk(extra: str, needed_by: str) -> Iterator[None]:
    """Import a vendor's SDK in the block. Raises MissingExtraError if it is not installed.

    Garbage collection is off meanwhile: an SDK is thousands of modules that all stay, and searching them takes a fifth
    of the time.
    """
    try:
        with uncollected():
            yield
    except ImportError as error:
        raise MissingExtraError(extra, needed_by) from error


def load_httpx() -> None:
    """Import httpx where it is installed, before the first call of the SDK `openai`.

    At each call, that SDK uses whatever module is loaded by this name. It fails where another thread is just importing
    it, as Google's SDK does.
    """
    # Not its command line: that loads rich and pygments, which takes longer than all the rest of it.
    command_line = "httpx._main"
    if "httpx" not in sys.modules:
        sys.modules[command_line] = None  # type: ignore[assignment]  # what Python takes for a module that is not there
    with suppress(ImportError):
        import_module("httpx")
    if sys.modules.get(command_line, sys) is None:
        sys.modules.pop(command_line, None)


def guard_session(session: Any, origin: Origin, timeout_seconds: float) -> None:
    """Make a session of requests keep the rules: by its transport, which every request and redirect passes.

    It also abandons answers that are too slow.
    """
    from requests.adapters import HTTPAdapter  # noqa: PLC0415 -- comes with the SDKs that use it
    from urllib3 import PoolManager  # noqa: PLC0415 -- comes with requests

    class GuardedAdapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **named: Any) -> None:
            super().init_poolmanager(*args, **named)
            self._limit(self.poolmanager)

        def proxy_manager_for(self, *args: Any, **named: Any) -> Any:
            return self._limit(super().proxy_manager_for(*args, **named))

        def _limit(self, manager: Any) -> Any:
            # All managers of requests share one table, which must not change.
            pools = dict(PoolManager(1).pool_classes_by_scheme)
            limit_pools(pools, timeout_seconds)
            manager.pool_classes_by_scheme = pools
            return manager

        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            origin.check_request(request.method, request.url, request.headers)
            response = super().send(request, *args, **kwargs)
            origin.check_response(request.method, request.url, response.status_code, response.headers.get("location"))
            return response

    _hide_in_logs(origin.secrets)
    for scheme in _PORTS:
        session.mount(f"{scheme}://", GuardedAdapter())


def _origin_of(url: str) -> tuple[str, str, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        # The port is no number: this is no origin.
        return "", "", None


def _shown(origin: tuple[str, str, int | None]) -> str:
    scheme, host, port = origin
    return f"{scheme}://{host}" if port == _PORTS.get(scheme) else f"{scheme}://{host}:{port}"
