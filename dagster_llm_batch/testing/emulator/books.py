"""The books: calls, batches and bills of the emulated vendors. Tests assert on them.

Append-only and thread-safe; methods return copies. A request is billed if its answer was 2xx; this includes a refusal
and a cut reply. The books hold tokens only, and no prices.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One HTTP request, with any end. `path` is without prefix and query; `key` is the API key sent."""

    at: float
    method: str
    path: str
    key: str | None


@dataclass(frozen=True)
class FileRecord:
    """A file that was uploaded or written."""

    id: str
    account: str
    purpose: str
    filename: str
    bytes: int
    created_at: int


@dataclass(frozen=True)
class BatchRecord:
    """A batch that was created, even if its creator got no reply. `ordinal` counts them from 0."""

    id: str
    ordinal: int
    account: str
    endpoint: str
    input_file_id: str
    metadata: dict[str, str]
    created_at: int


@dataclass(frozen=True)
class MoveRecord:
    """An edge that a batch took."""

    batch_id: str
    source: str
    event: str
    target: str
    at: float


@dataclass(frozen=True)
class Execution:
    """One request that reached the model. `batch_id` and `custom_id` are None in real time.

    `body_digest` identifies endpoint and body, whatever the custom_id.
    """

    account: str
    endpoint: str
    batch_id: str | None
    custom_id: str | None
    body_digest: str
    status_code: int
    input_tokens: int
    output_tokens: int

    @property
    def billed(self) -> bool:
        """Whether the account pays for the request."""
        return self.status_code // 100 == 2  # noqa: PLR2004  (the 2xx family)


@dataclass(frozen=True)
class Tokens:
    """A sum of tokens."""

    input_tokens: int
    output_tokens: int


def body_digest(endpoint: str, body: Any) -> str:
    """Return the identity of a request without its custom_id: equal for equal JSON, whatever the order of its keys."""
    text = json.dumps([endpoint, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Books:
    """Everything that happened, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._files: list[FileRecord] = []
        self._batches: list[BatchRecord] = []
        self._moves: list[MoveRecord] = []
        self._executions: list[Execution] = []
        self._answer_errors: list[BaseException] = []

    def write(self, record: Call | FileRecord | BatchRecord | MoveRecord | Execution | BaseException) -> None:
        """Add one entry."""
        with self._lock:
            match record:
                case Call():
                    self._calls.append(record)
                case FileRecord():
                    self._files.append(record)
                case BatchRecord():
                    self._batches.append(record)
                case MoveRecord():
                    self._moves.append(record)
                case Execution():
                    self._executions.append(record)
                case _:
                    self._answer_errors.append(record)

    @property
    def calls(self) -> list[Call]:
        """Every HTTP request."""
        with self._lock:
            return list(self._calls)

    @property
    def files(self) -> list[FileRecord]:
        """Every file, deleted ones included."""
        with self._lock:
            return list(self._files)

    @property
    def batches(self) -> list[BatchRecord]:
        """Every batch."""
        with self._lock:
            return list(self._batches)

    @property
    def moves(self) -> list[MoveRecord]:
        """Every edge taken."""
        with self._lock:
            return list(self._moves)

    @property
    def executions(self) -> list[Execution]:
        """Every request that reached the model."""
        with self._lock:
            return list(self._executions)

    @property
    def answer_errors(self) -> list[BaseException]:
        """Errors that the answer function raised."""
        with self._lock:
            return list(self._answer_errors)

    def calls_to(self, method: str, path: str) -> int:
        """Return how many requests this route saw."""
        return sum(call.method == method and call.path == path for call in self.calls)

    @property
    def creates_seen(self) -> int:
        """Number of received requests to create a batch, including refused and lost ones."""
        return sum(self.calls_to("POST", path) for path in ("/v1/batches", "/v1/messages/batches"))

    def walk(self, batch_id: str) -> list[str]:
        """Return the states that the batch was moved to, in order."""
        return [move.target for move in self.moves if move.batch_id == batch_id and move.source != move.target]

    def billed_tokens(self, batch_id: str | None = None) -> Tokens:
        """Return the tokens billed in all, or for one batch."""
        paid = [one for one in self.executions if one.billed and batch_id in {None, one.batch_id}]
        return Tokens(sum(one.input_tokens for one in paid), sum(one.output_tokens for one in paid))

    def billed_counts(self) -> dict[str, int]:
        """Return how many times each body was billed, by digest, real time included."""
        counts: dict[str, int] = defaultdict(int)
        for one in self.executions:
            if one.billed:
                counts[one.body_digest] += 1
        return dict(counts)

    def billed_twice(self) -> dict[str, int]:
        """Return the bodies billed in more than one batch: digest -> number of batches. It should be empty."""
        batches: dict[str, set[str]] = defaultdict(set)
        for one in self.executions:
            if one.billed and one.batch_id is not None:
                batches[one.body_digest].add(one.batch_id)
        return {digest: len(ids) for digest, ids in batches.items() if len(ids) > 1}
