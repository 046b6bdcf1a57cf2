"""Answer request lines in a worker: by a server, a callable, or a command. Every line gets exactly one result line.

A row's failure is its result line, in the shape of OpenAI's output files; none of these raises for a row. (Ray's own
`HttpRequestProcessor` has no error per row, and one 429 too many ends its whole dataset.)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["Answerer", "answerer", "custom_id_of", "error_line", "reply_line"]

Answerer = Callable[[Sequence[bytes]], list[bytes]]
"""Request lines to result lines, one for each; the lines that a command leaves out are missing."""

# Answers of a server that is busy or starting; a row that it refuses (other 4xx) fails for good.
_RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT_SECONDS = 60.0
_OK = 200
_LOG_CHARS = 500
_PLACEHOLDER = re.compile(r"\{(input|output|model)\}")
_LIFELINE = Path(__file__).with_name("lifeline.py")


def answerer(plan: Mapping[str, Any]) -> Answerer:
    """Return the answerer of this plan."""
    kinds: dict[str, Callable[..., Answerer]] = {"server": Server, "call": Call, "command": Command}
    options = dict(plan)
    return kinds[options.pop("kind")](**options)


class Server:
    """An OpenAI-compatible server; `at_once` requests are under way at a time.

    Requests that the server asks to repeat (429, 5xx), and requests that did not reach it, are sent again. A request
    that ended without a reply is not, since it may have been answered.
    """

    def __init__(
        self,
        base_url: str,
        api_key_env: str | None,
        at_once: int,
        max_retries: int,
        timeout_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._base = base_url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key_env is not None:
            if api_key_env not in os.environ:
                raise RuntimeError(f"The environment variable {api_key_env} with the server's key is not set here.")
            self._headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"
        self._max_retries = max_retries
        self._sleep = sleep
        self._timeout = (min(30.0, timeout_seconds), timeout_seconds)
        self._pool = ThreadPoolExecutor(at_once)
        self._local = threading.local()

    def __call__(self, lines: Sequence[bytes]) -> list[bytes]:
        return list(self._pool.map(self._answer, lines))

    def _answer(self, line: bytes) -> bytes:
        custom_id = None
        try:
            request = json.loads(line)
            custom_id = request["custom_id"]
            url, body = self._base + request["url"], json.dumps(request["body"]).encode()
        except Exception as error:  # noqa: BLE001 -- one bad row is one bad row
            return error_line(custom_id, "invalid_request", f"{type(error).__name__}: {error}")
        try:
            status, reply = self._post(url, body)
        except Exception as error:  # noqa: BLE001 -- as above
            return error_line(custom_id, _code_of(error), f"{type(error).__name__}: {error}")
        return reply_line(custom_id, reply, status)

    def _post(self, url: str, body: bytes) -> tuple[int, Any]:
        import requests  # noqa: PLC0415 -- comes with ray

        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        for number in range(self._max_retries + 1):
            last = number == self._max_retries
            wait = random.uniform(0.5, 1.0) * 2**number  # noqa: S311 -- spreads load
            try:
                reply = self._local.session.post(url, data=body, headers=self._headers, timeout=self._timeout)
            except requests.exceptions.ConnectionError as error:
                if last or not _never_arrived(error):
                    raise
            else:
                if last or reply.status_code not in _RETRIED_STATUSES:
                    break
                with contextlib.suppress(KeyError, ValueError):
                    wait = float(reply.headers["Retry-After"])
            self._sleep(max(0.0, min(wait, _LONGEST_WAIT_SECONDS)))
        try:
            return reply.status_code, reply.json()
        except ValueError:
            return reply.status_code, reply.text


class Call:
    """A callable by its import path, `package.module:name`, on the workers. A class is built once a worker.

    It takes a list of request bodies and returns as many replies: a text, or the body of a reply with its usage. If it
    raises, it is called for each row alone, and a row that then fails has failed.
    """

    def __init__(self, path: str, rows: int) -> None:
        module, _, name = path.partition(":")
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        self._call = target() if isinstance(target, type) else target
        self._rows = rows

    def __call__(self, lines: Sequence[bytes]) -> list[bytes]:
        answers = []
        for start in range(0, len(lines), self._rows):
            answers += self._answer(lines[start : start + self._rows])
        return answers

    def _answer(self, lines: Sequence[bytes]) -> list[bytes]:
        try:
            requests = [json.loads(line) for line in lines]
            replies = list(self._call([request["body"] for request in requests]))
            if len(replies) != len(requests):
                raise ValueError(f"it gave {len(replies)} replies to {len(requests)} requests")
            return [
                reply_line(request["custom_id"], _body(reply, request["body"]))
                for request, reply in zip(requests, replies, strict=True)
            ]
        except Exception as error:  # noqa: BLE001 -- one bad row is one bad row
            if len(lines) == 1:
                return [error_line(custom_id_of(lines[0]), "call_failed", f"{type(error).__name__}: {error}")]
            return [answer for line in lines for answer in self._answer([line])]


class Command:
    """A command with the files of `vllm run-batch`; its remaining processes are killed, also when this worker dies."""

    def __init__(self, words: Sequence[str], model: str) -> None:
        self._words = list(words)
        self._model = model

    def __call__(self, lines: Sequence[bytes]) -> list[bytes]:
        with tempfile.TemporaryDirectory(prefix="ray-shard-") as folder:
            source, target, log = (Path(folder, name) for name in ("in.jsonl", "out.jsonl", "log.txt"))
            source.write_bytes(b"".join(line + b"\n" for line in lines))
            values = {"input": str(source), "output": str(target), "model": self._model}
            words = [_PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in self._words]
            with log.open("wb") as said:
                # its standard input is the lifeline: it closes when this process ends, however it ends
                done = subprocess.Popen(  # noqa: S603 -- the user's own command, no shell
                    [sys.executable, "-I", "-S", str(_LIFELINE), *words],
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
                )
                code = done.wait()
            if target.exists():
                return [line for line in target.read_bytes().split(b"\n") if line.strip()]
            tail = log.read_bytes().decode("utf-8", "replace").strip()[-_LOG_CHARS:]
            reason = f"The command ended with code {code} and wrote no output. {tail}".strip()
            return [error_line(custom_id_of(line), "server_error", reason) for line in lines]


def reply_line(custom_id: str | None, body: Any, status: int = _OK) -> bytes:
    """Return the result line of a reply."""
    response = {"status_code": status, "request_id": None, "body": body}
    return _line({"id": None, "custom_id": custom_id, "response": response, "error": None})


def error_line(custom_id: str | None, code: str, message: str) -> bytes:
    """Return the result line of a row without a reply."""
    error = {"code": code, "message": message[:_LOG_CHARS]}
    return _line({"id": None, "custom_id": custom_id, "response": None, "error": error})


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _body(reply: Any, request: Mapping[str, Any]) -> Any:
    if isinstance(reply, Mapping):
        return reply
    if not isinstance(reply, str):
        raise TypeError(f"a reply is a text or the body of a reply; got {type(reply).__name__}")
    choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": request.get("model"), "choices": [choice]}


def custom_id_of(line: bytes) -> str | None:
    """Return the line's custom_id; None if the line cannot be read."""
    try:
        custom_id = json.loads(line)["custom_id"]
    except Exception:  # noqa: BLE001 -- whatever the line is
        return None
    return custom_id if isinstance(custom_id, str) else None


def _never_arrived(error: Exception) -> bool:
    """Return whether the connection was never made, so that the request cannot have been answered."""
    import urllib3  # noqa: PLC0415 -- comes with requests

    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


def _code_of(error: Exception) -> str:
    return "timeout" if "Timeout" in type(error).__name__ else "service_unavailable"
