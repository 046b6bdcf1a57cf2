"""OpenAI's files and batches."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from itertools import count
from typing import Any

from benchmarks.mock.answers import ROW, answer, embedding
from benchmarks.mock.server import Mock, Reply

_CUSTOM_ID = re.compile(rb'"custom_id":"([^"]*)"')
_BOUNDARY = re.compile(rb"boundary=([^;]+)")
_LINE = (
    b'{"id":"batch_req_%d","custom_id":"%s","response":{"status_code":200,"request_id":"req_%d","body":{"id":"chatcmpl-'
    b'%d","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":%s,"refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop'
    b'"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens"'
    b':0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}},"service_tier":"default'
    b'","system_fingerprint":"fp_mock"}},"error":null}\n'
)


_EMBEDDING_LINE = (
    b'{"id":"batch_req_%d","custom_id":"%s","response":{"status_code":200,"request_id":"req_%d","body":{"object":"list",'
    b'"data":[{"object":"embedding","index":0,"embedding":%s}],"model":"text-embedding-3-small","usage":{"prompt_tokens"'
    b':%d,"total_tokens":%d}}},"error":null}\n'
)


def results(requests: bytes, form: str = "label") -> bytes:
    """Return the output file for a request file."""
    out = []
    for number, line in enumerate(requests.splitlines()):
        found = _CUSTOM_ID.search(line)
        name = found[1] if found else b""
        if b'"/v1/embeddings"' in line[:200]:
            tokens = len(line) // 4
            out.append(_EMBEDDING_LINE % (number, name, number, embedding(line), tokens, tokens))
            continue
        reply = answer(line, form)
        used = (reply.input_tokens, reply.output_tokens, reply.input_tokens + reply.output_tokens)
        out.append(_LINE % (number, name, number, number, reply.quoted, *used))
    return b"".join(out)


class OpenAI:
    """Files and batches by id. `form` is the form of the answers."""

    def __init__(self, mock: Mock, form: str = "label") -> None:
        self._form = form
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._held: dict[str, bytes] | None = None  # inputs of batches that run until `finish`
        self._billed: Counter[bytes] = Counter()  # the number of these batches that had each row
        self._lock = threading.Lock()
        self._numbers = count()  # safe for simultaneous calls
        mock.route("POST", r"/v1/files", self.upload)
        mock.route("GET", r"/v1/files/([^/]+)/content", self.content)
        mock.route("POST", r"/v1/batches", self.create)
        mock.route("GET", r"/v1/batches", self.page)
        mock.route("GET", r"/v1/batches/([^/]+)", lambda _request, name: self._batches[name])
        mock.route("POST", r"/seed/openai", self.seed)
        mock.route("POST", r"/hold/openai", self.hold)
        mock.route("POST", r"/finish/openai", self.finish)
        mock.route("GET", r"/bill/openai", self.bill)

    def upload(self, request: Any) -> Reply:
        """Store the file from a multipart form, which is the part named "file"."""
        found = _BOUNDARY.search(request.headers["content-type"].encode())
        assert found is not None
        parts = request.body.split(b"--" + found[1])
        content = next(part for part in parts if b'name="file"' in part[:300]).partition(b"\r\n\r\n")[2]
        name = f"file-{len(self._batches)}-{time.monotonic_ns()}"
        self._files[name] = content.removesuffix(b"\r\n")
        return {"id": name, "object": "file", "bytes": len(content), "purpose": "batch", "filename": "f"} | _TIMES

    def create(self, request: Any) -> Reply:
        """Create a batch, which ends immediately. Input, and output once read, are deleted to save memory."""
        asked = request.json()
        if self._held is not None:
            return self._hold(asked, self._held)
        out = results(self._files.pop(asked["input_file_id"]), self._form)
        batch = self._new(asked["input_file_id"], asked.get("metadata", {}), out.count(b"\n"))
        self._files[name := f"{batch['id']}-output"] = out
        batch |= {"status": "completed", "output_file_id": name, "completed_at": int(time.time())}
        return batch

    def _hold(self, asked: dict[str, Any], held: dict[str, bytes]) -> dict[str, Any]:
        lines = self._files.pop(asked["input_file_id"])
        with self._lock:
            self._billed.update(ROW.findall(lines))
            batch = self._new(asked["input_file_id"], asked["metadata"], lines.count(b"\n"))
            batch["request_counts"]["completed"] = 0
            held[f"{batch['id']}-output"] = lines
        return batch

    def content(self, _request: Any, name: str) -> Reply:
        """Return a file. The output of a held batch stays, since the successor of a killed worker reads it again."""
        if self._held is not None and name in self._held:
            return results(self._held[name], self._form)
        return self._files.pop(name)

    def hold(self, _request: Any) -> Reply:
        """Let batches run until `finish` from now on, and count the bills of each row."""
        self._held = {}
        return {}

    def bill(self, _request: Any) -> Reply:
        """Return the bill of the held batches. A row in two of them is billed twice."""
        twice = sum(times - 1 for times in self._billed.values())
        return {"batches": len(self._held or ()), "rows": len(self._billed), "rows_billed_twice": twice}

    def _new(self, input_file_id: str, metadata: Any, total: int) -> dict[str, Any]:
        batch: dict[str, Any] = {
            "id": f"batch_{next(self._numbers):08d}",
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "status": "in_progress",
            "input_file_id": input_file_id,
            "metadata": metadata,
            "request_counts": {"total": total, "completed": total, "failed": 0},
            "created_at": (now := int(time.time())),
            "expires_at": now + 86_400,
        }
        self._batches[str(batch["id"])] = batch
        return batch

    def seed(self, request: Any) -> Reply:
        """Create running batches, in the number of the call."""
        made = [self._new("file-seed", {}, 100) for _ in range(request.json()["count"])]
        return {"ids": [batch["id"] for batch in made]}

    def finish(self, _request: Any) -> Reply:
        """End all batches."""
        for batch in self._batches.values():
            output = f"{batch['id']}-output" if self._held is not None else "file-none"
            batch |= {"status": "completed", "output_file_id": output, "completed_at": int(time.time())}
            batch["request_counts"]["completed"] = batch["request_counts"]["total"]
        return {}

    def page(self, request: Any) -> Reply:
        """Return a page of batches, newest first, by `after` and `limit`."""
        names = list(reversed(self._batches))
        after = request.query.get("after")
        start = names.index(after) + 1 if after else 0
        end = start + int(request.query.get("limit", 20))
        data = [self._batches[name] for name in names[start:end]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return {"object": "list", "data": data, "has_more": end < len(names), **ends}


_TIMES = {"created_at": 1_760_000_000, "expires_at": 1_760_086_400}
