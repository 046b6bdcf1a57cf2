"""A vendor whose batches are files in a folder: the codec and names of a real provider, and no server to keep running.

<folder>/<batch_id>/tag, requests.jsonl, and results.jsonl as soon as it has ended
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from tests.golden.package import Absent, BatchReport, BatchStatus, Found

WIRE = Path(__file__).parents[1] / "providers" / "wire"
_CUSTOM_ID = re.compile(rb"r[0-9a-f]{16}-[0-9a-f]{40}")


@cache
def recorded(vendor: str) -> list[dict[str, Any]]:
    """Return the documented result lines of a vendor from its provider's tests."""
    return [json.loads(line) for line in (WIRE / f"{vendor}.jsonl").read_text(encoding="ascii").splitlines()]


def answer(wire: Mapping[str, Any], custom_id: str) -> bytes:
    """Return the documented line as the answer to this request. A line without a custom_id stays unchanged."""
    line: str = wire["line"]
    named = wire["result"]["custom_id"]
    return (line if named is None else line.replace(json.dumps(named), json.dumps(custom_id), 1)).encode() + b"\n"


class KilledError(BaseException):
    """The process ends here. Code in it must not catch this."""


class Filed:
    """See above. `end` ends batches; `kill` lets the process die in the next create call."""

    def __init__(self, provider: Any, folder: Path, now: Callable[[], datetime]) -> None:
        self._provider = provider
        self._folder = folder
        self._now = now
        self._dies: str | None = None
        folder.mkdir(parents=True, exist_ok=True)
        # The engine tests for these methods by isinstance, which ignores `__getattr__`.
        for verb in ("delete", "delete_request_file", "count_files", "respond", "console_url", "check_setup"):
            if hasattr(provider, verb) and not hasattr(type(self), verb):
                setattr(self, verb, getattr(provider, verb))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    def submit(self, lines: Any, spec: Any, tag: str) -> str:
        del spec
        dies, self._dies = self._dies, None
        if dies == "before":
            raise KilledError
        batch = self._folder / f"batch-{len(self.batches()) + 1}"
        batch.mkdir()
        (batch / "tag").write_text(tag)
        (batch / "requests.jsonl").write_bytes(lines.read())
        if dies == "after":
            raise KilledError
        return batch.name

    def find(self, tag: str, hints: Any) -> Any:
        found = [name for name in self.batches() if (self._folder / name / "tag").read_text() == tag]
        return Found(found[0]) if found and found[0] not in hints.known else Absent()

    def poll(self, batch_ids: Sequence[str]) -> dict[str, Any]:
        return {name: self._report(name) for name in batch_ids}

    def _report(self, name: str) -> Any:
        total = len(self.asked(name))
        if self.has_ended(name):
            return BatchReport(name, BatchStatus.ENDED, total=total, done=total, failed=0, ended_at=self._now())
        return BatchReport(name, BatchStatus.RUNNING, total=total, done=0)

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        with (self._folder / batch_id / "results.jsonl").open("rb") as file:
            yield from file

    def cancel(self, batch_id: str) -> None:
        raise NotImplementedError(batch_id)

    # the vendor's side

    def batches(self) -> list[str]:
        return sorted((path.name for path in self._folder.iterdir()), key=lambda name: int(name.split("-")[1]))

    def request_file(self, batch_id: str) -> Path:
        """Return the file with the sent requests."""
        return self._folder / batch_id / "requests.jsonl"

    def has_ended(self, batch_id: str) -> bool:
        return (self._folder / batch_id / "results.jsonl").exists()

    def asked(self, batch_id: str) -> list[str]:
        """Return the custom_ids of a batch."""
        return [found.decode() for found in _CUSTOM_ID.findall(self.request_file(batch_id).read_bytes())]

    def asked_ever(self) -> list[str]:
        """Return the custom_ids of all batches, without the shards' nonces."""
        return [one.partition("-")[2] for batch_id in self.batches() for one in self.asked(batch_id)]

    def end(self, answers: Callable[[list[str]], Iterable[bytes]], batch_ids: Iterable[str] | None = None) -> None:
        """End these batches, or all that run, with these result lines."""
        for batch_id in self.batches() if batch_ids is None else batch_ids:
            results = self._folder / batch_id / "results.jsonl"
            if not results.exists():
                results.write_bytes(b"".join(answers(self.asked(batch_id))))

    def kill(self, when: str) -> None:
        """Let the process die in the next create call, "before" or "after" it arrives."""
        self._dies = when
