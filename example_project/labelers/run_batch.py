"""The file contract of `vllm run-batch`, for any labeler: an OpenAI batch file in, a results file out.

Invariants: each input line has one output line, in the same order, including duplicates. Blank lines are skipped. A
failed request has an output line with its status, and the exit code stays 0. If a line is not a request, the command
ends with exit code 1 before it labels anything. The output file is complete or missing: it is written under another
name, then renamed.

`<out>.progress` holds {"done": n, "total": n}, updated while the command works. It is only for display.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["ENDPOINT", "BadBatchFileError", "Refusal", "command", "run"]

ENDPOINT = "/v1/chat/completions"
_PROGRESS_SECONDS = 0.1
_EXIT_TERMINATED = 143

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts a request body to the body of a chat completion. Raises Refusal for a row that fails."""


@dataclass
class Refusal(Exception):  # noqa: N818 - a row's outcome, not a fault of the command
    """One row's failure, with its HTTP status and message."""

    status: int
    message: str
    kind: str = "BadRequestError"
    param: str | None = None


class BadBatchFileError(Exception):
    """The input file cannot be read as requests."""


def run(source: Path, target: Path, model: str, answer: Answer, concurrency: int = 1) -> int:
    """Label `source` into `target` and return the number of rows. At most `4 * concurrency` rows are in memory."""
    total = sum(1 for _ in _requests(source))  # checks the whole file before the first row is paid for
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    progress = _Progress(target.with_name(f"{target.name}.progress"), total)
    try:
        with temporary.open("wb") as out, ThreadPoolExecutor(concurrency) as pool:
            waiting: deque[Future[bytes]] = deque()

            def write_oldest() -> None:
                out.write(waiting.popleft().result())
                progress.step()

            for request in _requests(source):
                waiting.append(pool.submit(_line, request, model, answer))
                if len(waiting) >= 4 * concurrency:
                    write_oldest()
            while waiting:
                write_oldest()
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return total


def command(
    name: str,
    default_model: str,
    serve: Callable[[str, argparse.Namespace], contextlib.AbstractContextManager[Answer]],
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run the command line around `run`, and return the exit code. `serve` yields the function that answers."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description="Labels an OpenAI batch file.")
    parser.add_argument("-i", "--input-file", type=Path, required=True, metavar="IN.jsonl")
    parser.add_argument("-o", "--output-file", type=Path, required=True, metavar="OUT.jsonl")
    parser.add_argument("--model", default=default_model, help="the name that requests must ask for (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=1, help="rows in work at a time (%(default)s)")
    arguments(parser)
    options = parser.parse_args(argv)
    if options.concurrency < 1:
        parser.error(f"--concurrency must be at least 1, got {options.concurrency}")
    signal.signal(signal.SIGTERM, _terminated)
    began = time.monotonic()
    try:
        for _ in _requests(options.input_file):
            pass  # report a broken file before a model is loaded
        with serve(options.model, options) as answer:
            rows = run(options.input_file, options.output_file, options.model, answer, options.concurrency)
    except (BadBatchFileError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print(f"{name}: {rows} rows in {time.monotonic() - began:.1f} s -> {options.output_file}", file=sys.stderr)
    return 0


def _requests(source: Path) -> Iterator[dict[str, Any]]:
    with source.open("rb") as file:  # bytes only break lines at \n; a text may hold U+2028
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                request = json.loads(line)
            except ValueError as error:
                raise BadBatchFileError(f"{source}, line {number} is not JSON: {error}") from error
            missing = _missing(request)
            if missing:
                raise BadBatchFileError(
                    f"{source}, line {number} is no request: {missing}. A line is an object with "
                    '"custom_id", "method", "url" (strings) and "body" (an object).'
                )
            yield request


def _missing(request: object) -> str | None:
    if not isinstance(request, dict):
        return f"it is a {type(request).__name__}"
    wanted = {"custom_id": str, "method": str, "url": str, "body": dict}
    wrong = [key for key, kind in wanted.items() if not isinstance(request.get(key), kind)]
    return f"{', '.join(wrong)} missing or of another type" if wrong else None


def _line(request: dict[str, Any], model: str, answer: Answer) -> bytes:
    status, body, error = 200, None, None
    try:
        body = answer(_checked(request, model))
    except Refusal as refusal:
        status = refusal.status
        detail = {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": status}
        error = {"error": detail}
    except Exception as fault:  # noqa: BLE001 - whatever one row does, the others get their answers
        status = 500
        detail = {"message": f"{type(fault).__name__}: {fault}", "type": "InternalServerError", "param": None}
        error = {"error": {**detail, "code": status}}
    response = {"status_code": status, "request_id": f"batch-{uuid.uuid4().hex}", "body": body}
    row = {"id": uuid.uuid4().hex, "custom_id": request["custom_id"], "response": response, "error": error}
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _checked(request: dict[str, Any], model: str) -> dict[str, Any]:
    body: dict[str, Any] = request["body"]
    if request["url"] != ENDPOINT or request["method"] != "POST":
        raise Refusal(400, f"{request['method']} {request['url']} was used. Supported: POST {ENDPOINT}.", param="url")
    if body.get("model") != model:
        message = f"The model `{body.get('model')}` does not exist. This command answers as `{model}`."
        raise Refusal(404, message, "NotFoundError", "model")
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise Refusal(400, "`messages` must be a list with at least one message.", param="messages")
    if body.get("stream"):
        raise Refusal(400, "A batch request cannot be streamed.", param="stream")
    return body


class _Progress:
    def __init__(self, path: Path, total: int) -> None:
        self._path, self._total, self._done, self._next_at = path, total, 0, 0.0
        self._write()

    def step(self) -> None:
        self._done += 1
        if self._done == self._total or time.monotonic() >= self._next_at:
            self._write()

    def _write(self) -> None:
        self._next_at = time.monotonic() + _PROGRESS_SECONDS
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"done": self._done, "total": self._total}), encoding="utf-8")
        temporary.replace(self._path)


def _terminated(*_: object) -> NoReturn:
    sys.exit(_EXIT_TERMINATED)
