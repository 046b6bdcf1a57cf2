"""A server that repeats a vendor's answers, except for one call, which it answers with any bytes.

A verb runs once before the emulator, through a relay that keeps each call's answer. Then the relay gives the same
answers, except for one call of the verb. So a thousand odd answers cost little more than their sockets. The SDKs are
the real ones.
"""

from __future__ import annotations

import copy
import http.client
import io
import json
import random
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from bedrock_emulator import BUCKET, HAIKU, over
from google_emulator import gemini, vertex, vertex_in_tables

from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, VendorLimits, local_gcs, local_s3
from dagster_llm_batch.types import FindHints, Request, RequestSpec

ROWS = 4
MANY = 6
TAG, NONCE = "odd", "n"
VERBS = ("submit", "find", "poll one", "poll many", "fetch", "cancel", "respond")

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_BESIDE = "?fields=name&"  # Cloud Storage's SDK reads this of a bucket in a separate thread
_TO_ITSELF = frozenset({"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"})


@dataclass(frozen=True)
class Answer:
    """An answer as it goes over the wire. `name` describes its oddity."""

    name: str
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # in place of the whole answer
    closes: bool = False  # the connection; the answer announces this

    @property
    def wire(self) -> bytes:
        if self.raw is not None:
            return self.raw
        phrase = http.client.responses.get(self.status, "Odd")
        headers = {"content-length": str(len(self.body)), **self.headers}
        if self.closes:
            headers["connection"] = "close"
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} {phrase}\r\n{head}\r\n".encode("latin-1") + self.body


@dataclass(frozen=True)
class Call:
    """A call that a verb made, and its answer."""

    method: str
    path: str
    answer: Answer


_JSON = {"content-type": "application/json"}
UNKNOWN = Answer("unknown", 404, b'{"error": {"code": 404, "message": "unknown"}}', _JSON)


class Relay:
    """Passes calls on to `upstream` and keeps them, until `replay` sets the answers."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._lock = threading.Lock()
        self._kept: Sequence[Call] | None = None
        self._seen: Counter[str] = Counter()
        self._odd_at, self._odd = ("", 0), b""
        self.calls: list[Call] = []
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                body = _body(self)
                data, is_last = relay._answered(self.command, self.path, dict(self.headers.items()), body)
                self.wfile.write(data)
                self.close_connection = self.close_connection or is_last

            do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET  # noqa: N815 -- the library's names

            def log_message(self, *_args: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def keep(self) -> None:
        """Pass calls on from now on, and keep their answers."""
        with self._lock:
            self._kept, self.calls = None, []

    def replay(self, kept: Sequence[Call], odd_at: int, odd: Answer) -> None:
        """Repeat the kept answers, each for a similar call, except for the call of this number."""
        place = _place(kept[odd_at].method, kept[odd_at].path)
        before = sum(_place(call.method, call.path) == place for call in kept[:odd_at])
        with self._lock:
            self._kept, self._seen = kept, Counter()
            self._odd_at, self._odd = (place, before), replace(odd, closes=True).wire

    @property
    def has_been_odd(self) -> bool:
        """True once the odd answer was given: on a busy machine, an earlier call may have exceeded its time-out."""
        place, before = self._odd_at
        return self._seen[place] > before

    def _answered(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[bytes, bool]:
        """Return the answer's bytes, and whether the connection ends with them."""
        with self._lock:
            if self._kept is None:
                call = Call(method, path, self._passed_on(method, path, headers, body))
                self.calls.append(call)
                return call.answer.wire, False
            place = _place(method, path)
            number = self._seen[place]
            self._seen[place] += 1
            if (place, number) == self._odd_at:
                return self._odd, True
            known = [call.answer for call in self._kept if _place(call.method, call.path) == place]
            return known[min(number, len(known) - 1)].wire if known else UNKNOWN.wire, False

    def _passed_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self._upstream)
        kept = {name: value for name, value in headers.items() if name.lower() not in ("transfer-encoding", "expect")}
        connection.request(method, path, body, {**kept, "content-length": str(len(body))})
        response = connection.getresponse()
        read = response.read()
        given = {name: value for name, value in response.getheaders() if name.lower() not in _TO_ITSELF}
        connection.close()
        return Answer("as it was", response.status, read, given)


def _place(method: str, path: str) -> str:
    """Return the purpose of a call, without the ids that an SDK makes up."""
    return f"{method} {_UUID.sub('*', urlsplit(path).path)}"


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" in handler.headers.get("transfer-encoding", ""):
        parts = []
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)
    return handler.rfile.read(int(handler.headers.get("content-length", 0)))


@dataclass(frozen=True)
class RecordedProvider:
    """A provider behind the relay, the ids of its batches, and each verb as a call without arguments."""

    name: str
    provider: Provider
    spec: RequestSpec
    relay: Relay
    verbs: Mapping[str, Callable[[], Any]]
    kept: Mapping[str, Sequence[Call]]
    made: Mapping[str, int]  # number of kept calls of the verb itself; calls that may follow it come after these
    truth: Mapping[str, Any]


PROVIDERS = (
    *("openai", "anthropic", "bedrock", "vertex", "vertex claude", "vertex tables", "gemini", "gemini inline"),
    *("openrouter", *SERVER_FOLDERS),
)

_SPECS = {
    "openai": RequestSpec("gpt-x"),
    **dict.fromkeys(SERVER_FOLDERS, RequestSpec("gpt-x")),
    "openrouter": RequestSpec("openai/gpt-x"),
    "anthropic": RequestSpec("claude-x", params={"max_tokens": 100}),
    "bedrock": RequestSpec(HAIKU, params={"max_tokens": 100}),
    "vertex claude": RequestSpec("claude-sonnet-4-5", params={"max_tokens": 100}),
}
_GOOGLE = RequestSpec("gemini-2.5-flash")


@contextmanager
def storage() -> Iterator[Mapping[str, Any]]:
    """Give a Cloud Storage and an S3 server, as options of an emulator."""
    with local_s3(BUCKET) as s3_url, local_gcs(BUCKET) as gcs_url:
        yield {"s3_url": s3_url, "gcs_url": gcs_url}


@contextmanager
def record_provider(name: str, stored: Mapping[str, Any]) -> Iterator[RecordedProvider]:
    """Give a provider with ended batches and a running one, and its verbs' answers."""
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator(**stored, limits=VendorLimits(bedrock_min_records=1)))
        relay = Relay(emulator.openai_base_url)
        stack.callback(relay.close)
        seen, spec = _Seen(emulator, relay), _SPECS.get(name, _GOOGLE)
        # The record must be correct, however busy the machine is.
        provider = _provider(name, seen, google_seconds=60.0, retries=2)
        codec = provider.codec(spec)
        lines = [codec.encode(Request(f"r{i}", None, f"text {i}"), f"{NONCE}-{i}") for i in range(ROWS)]
        file = b"".join(lines)
        ended = [provider.submit(io.BytesIO(file), spec, f"{TAG}-{i}") for i in range(MANY)]
        emulator.settle()
        running = provider.submit(io.BytesIO(file), spec, f"{TAG}-r")
        hints = FindHints(datetime.now(UTC) - timedelta(hours=1), ROWS, NONCE, frozenset([*ended[1:], running]))

        def verbs_of(provider: Provider) -> dict[str, Callable[[], Any]]:
            verbs: dict[str, Callable[[], Any]] = {
                "submit": lambda: provider.submit(io.BytesIO(file), spec, f"{TAG}-n"),
                "find": lambda: provider.find(f"{TAG}-0", hints),
                "poll one": lambda: provider.poll([ended[0]]),
                "poll many": lambda: provider.poll(ended),
                "fetch": lambda: list(provider.fetch(ended[0])),
                "cancel": lambda: provider.cancel(running),
                "respond": lambda: provider.respond(lines[0]),
            }
            if name == "openrouter":  # it has no call that stops a batch
                del verbs["cancel"]
            return verbs

        beside = {
            "cancel": [running],  # after a failed cancel, the provider reads that the batch runs
            "poll many": ended,  # after an odd list, the provider reads each batch
        }
        kept, truth, made = {}, {}, {}
        for verb, call in verbs_of(provider).items():
            relay.keep()
            for batch_id in beside.get(verb, ()):
                provider.poll([batch_id])
            looked_up = relay.calls
            relay.keep()
            truth[verb] = call()
            own = [call for call in relay.calls if _BESIDE not in call.path]
            kept[verb], made[verb] = [*own, *looked_up], len(own)
        # Before a retry, an SDK waits for seconds; Google's retries until its time is over.
        hasty = _provider(name, seen, google_seconds=0.2, retries=0)
        yield RecordedProvider(name, hasty, spec, relay, verbs_of(hasty), kept, made, truth)


class _Seen:
    """The emulator's addresses, through the relay."""

    def __init__(self, emulator: Emulator, relay: Relay) -> None:
        self._emulator, self._relay = emulator, relay

    def __getattr__(self, name: str) -> str:
        return self._relayed(getattr(self._emulator, name))

    def base_url(self, vendor: str) -> str:
        return self._relayed(self._emulator.base_url(vendor))

    def _relayed(self, url: str) -> str:
        return urlsplit(url)._replace(netloc=self._relay.netloc).geturl()


def _provider(name: str, seen: Any, *, google_seconds: float, retries: int) -> Provider:
    match name:
        case "openai":
            return OpenAIProvider(DEFAULT_KEY, seen.openai_base_url, timeout_seconds=2.0, max_retries=retries)
        case "anthropic":
            return AnthropicProvider(DEFAULT_KEY, seen.anthropic_base_url, timeout_seconds=2.0, max_retries=retries)
        case "openrouter":
            return OpenRouterProvider(DEFAULT_KEY, seen.openrouter_base_url, timeout_seconds=2.0, max_retries=retries)
        case _ if name in SERVER_FOLDERS:
            return OpenAIProvider(
                DEFAULT_KEY,
                seen.base_url(name),
                server=SERVERS[name],
                name=name,
                timeout_seconds=2.0,
                max_retries=retries,
            )
        case "bedrock":
            return over(seen, seen.s3_relay_url, timeout_seconds=2.0, read_quotas=False)
        case "vertex" | "vertex claude":
            return vertex(seen, seen.gcs_relay_url, prefix=name, timeout_seconds=google_seconds)
        case "vertex tables":
            return vertex_in_tables(seen, timeout_seconds=google_seconds)
        case "gemini":
            return gemini(seen, inline_bytes=0, timeout_seconds=2.0)
        case _:
            return gemini(seen, timeout_seconds=2.0)


def is_clean(text: str) -> bool:
    """Return whether any ledger, log and terminal can hold the text: no controls, half pairs or other line ends."""
    return not {unicodedata.category(char) for char in text} & {"Cc", "Cs", "Zl", "Zp"}


def json_answer(name: str, body: bytes, **more: Any) -> Answer:
    return Answer(name, body=body, headers={**_JSON, **more})


PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head>\n<body><p>It works!</p></body></html>\n"
DEEP = b"[" * 100_000
WEB_PAGE = Answer("a web page", body=PAGE, headers={"content-type": "text/html; charset=utf-8"})
NOT_FOUND_PAGE = Answer("a web page that is not there", 404, PAGE, {"content-type": "text/html"})
NONSENSE = (
    WEB_PAGE,
    NOT_FOUND_PAGE,
    json_answer("a web page that says it is JSON", PAGE),
    Answer("a web page without a type", body=PAGE),
    json_answer("nothing", b""),
    Answer("204", 204),
    json_answer("null", b"null"),
    json_answer("a list", b"[]"),
    json_answer("a list of nulls", b"[null]"),
    json_answer("a text", b'"ok"'),
    json_answer("a number", b"42"),
    json_answer("true", b"true"),
    json_answer("an object of something else", b'{"ok": true, "value": "\\ud800"}'),
    json_answer("an error with 200", b'{"error": {"message": "no \\ud800 \\u0000 sense", "code": 7}}'),
    json_answer("bytes that are no UTF-8", b'{"id": "\xff\xfe"}'),
    json_answer("deep lists", DEEP),
    json_answer("deep objects", b'{"id":' * 100_000),
    json_answer("deep and whole", b"[" * 5_000 + b"]" * 5_000),
    json_answer("cut JSON", b'{"id": "batch_1", "status": "comp'),
    json_answer("NaN", b"NaN"),
    json_answer("a number of 5,000 digits", b"9" * 5_000),
    json_answer("not gzip", b'{"id": "x"}', **{"content-encoding": "gzip"}),
    json_answer("unknown encoding", b"\x00\x01", **{"content-encoding": "br"}),
    Answer("a redirect to itself", 302, b"", {"location": "/"}),
    Answer("a redirect to nowhere", 307, b""),
    Answer("not modified", 304),
    Answer("status 299", 299, PAGE, {"content-type": "text/html"}),
    Answer("status 600", 600, b"{}", {"content-type": "application/json"}),
    Answer("switching protocols", raw=b"HTTP/1.1 101 Switching Protocols\r\nupgrade: odd\r\n\r\n"),
    Answer("no HTTP", raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
    Answer("a header that is none", raw=b"HTTP/1.1 200 OK\r\n\xff\x00\r\n\r\n{}"),
    Answer("404 without words", 404, b"", {}),
    Answer("404 with a text", 404, b"404 page not found", {"content-type": "text/plain"}),
    Answer("404 with a list", 404, b"[]", {"content-type": "application/json"}),
)


_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\ud800",
    "a\x00b\x1b[31m",
    "<html>",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    [],
    {},
    [None],
    [[[]]],
    {"data": None},
    ["\udfff"],
)


def mutants(answer: Answer, seed: int, count: int) -> Iterator[Answer]:
    """Yield the answer with some values or bytes replaced; the same answers for the same seed."""
    chance = random.Random(seed)
    try:
        value = json.loads(answer.body)
    except ValueError:
        value = None
    for number in range(count):
        name = f"mutant {seed}/{number}"
        if isinstance(value, dict | list) and chance.random() < 0.9:
            changed = copy.deepcopy(value)
            for _ in range(chance.choice((1, 1, 2, 4))):
                _change(changed, chance)
            body = json.dumps(changed).encode()
        else:
            body = _scrambled(answer.body, chance)
        yield Answer(name, answer.status, body, answer.headers)


def _change(value: Any, chance: random.Random) -> None:
    """Replace one value, anywhere in it."""
    places: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        one = todo.pop()
        pairs = one.items() if isinstance(one, dict) else enumerate(one)
        for key, inner in pairs:
            places.append((one, key))
            if isinstance(inner, dict | list):
                todo.append(inner)
    if places:
        holder, key = chance.choice(places)
        if isinstance(holder, dict) and chance.random() < 0.2:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(chance.choice(_ODD_VALUES))


def _scrambled(body: bytes, chance: random.Random) -> bytes:
    data = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        at = chance.randrange(len(data))
        match chance.randrange(3):
            case 0:
                del data[at:]
            case 1:
                data[at] = chance.randrange(256)
            case _:
                data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
    return bytes(data)
