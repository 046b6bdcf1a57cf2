"""Anthropic's Message Batches."""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec
from msgspec import Raw, Struct

from benchmarks.mock.answers import answer
from benchmarks.mock.server import Mock, Reply

_LINE = (
    b'{"custom_id":"%s","result":{"type":"succeeded","message":{"model":"claude-haiku-4-5-20251001","id":"msg_%d","type'
    b'":"message","role":"assistant","content":[{"type":"text","text":%s}],"stop_reason":"end_turn","stop_sequence":null'
    b',"usage":{"input_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{"ephemer'
    b'al_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":%d,"service_tier":"batch"}}}}\n'
)
_TIME = "2026-11-01T00:00:00Z"


class _Request(Struct):
    custom_id: str
    params: Raw


class _Body(Struct):
    requests: list[_Request]


_BODY = msgspec.json.Decoder(_Body)


class Anthropic:
    """Batches by id."""

    def __init__(self, mock: Mock) -> None:
        self._results: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._numbers = count()  # safe for simultaneous calls
        mock.route("POST", r"/v1/messages/batches", self.create)
        mock.route("GET", r"/v1/messages/batches", self.page)
        mock.route("GET", r"/v1/messages/batches/([^/]+)", self.batch)
        mock.route("GET", r"/v1/messages/batches/([^/]+)/results", lambda _request, name: self._results.pop(name))
        mock.route("POST", r"/seed/anthropic", self.seed)
        mock.route("POST", r"/finish/anthropic", self.finish)

    def create(self, request: Any) -> Reply:
        """Create a batch, which ends immediately."""
        out = []
        for number, one in enumerate(_BODY.decode(request.body).requests):
            reply = answer(bytes(one.params))
            values = (one.custom_id.encode(), number, reply.quoted, reply.input_tokens, reply.output_tokens)
            out.append(_LINE % values)
        batch = self._new(len(out), "ended")
        self._results[str(batch["id"])] = b"".join(out)
        return batch | {"processing_status": "in_progress"}

    def batch(self, request: Any, name: str) -> Reply:
        """Return a batch. The address of its results has the host of the call."""
        ended = self._batches[name]["processing_status"] == "ended"
        url = f"http://{request.headers['host']}/v1/messages/batches/{name}/results"
        return self._batches[name] | {"results_url": url if ended else None}

    def _new(self, total: int, status: str) -> dict[str, Any]:
        name, ended = f"msgbatch_{next(self._numbers):08d}", status == "ended"
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        batch: dict[str, Any] = {
            "id": name,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": counts | {"succeeded" if ended else "processing": total},
            "created_at": _TIME,
            "expires_at": _TIME,
            "ended_at": _TIME if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": None,
        }
        self._batches[name] = batch
        return batch

    def seed(self, request: Any) -> Reply:
        """Create running batches, in the number of the call."""
        made = [self._new(100, "in_progress") for _ in range(request.json()["count"])]
        return {"ids": [batch["id"] for batch in made]}

    def finish(self, _request: Any) -> Reply:
        """End all batches."""
        for batch in self._batches.values():
            counts = {**batch["request_counts"], "processing": 0, "succeeded": 100}
            batch |= {"processing_status": "ended", "ended_at": _TIME, "request_counts": counts}
        return {}

    def page(self, request: Any) -> Reply:
        """Return a page of batches, newest first, by `after_id` and `limit`."""
        names = list(reversed(self._batches))
        after = request.query.get("after_id")
        start = names.index(after) + 1 if after else 0
        end = start + int(request.query.get("limit", 20))
        data = [self._batches[name] for name in names[start:end]]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return {"data": data, "has_more": end < len(names), "first_id": first, "last_id": last}
