"""Compare every stored file of a run on one machine with a run by workers on the same rows."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyarrow as pa
from workspace import TicketLabel, Workspace

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Labeling, Limits
from dagster_llm_batch.files.request_files import request_ids, requests_of
from dagster_llm_batch.metrics import EvaluationReport, Target
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.types import BatchLimits

_T = TypeVar("_T")


class Pickled:
    """Workers in this process; their inputs and outputs are pickled on the way, as for real workers."""

    part_rows = 500  # not a multiple of the planned part size

    def map_rows(self, rows: Any, function: Callable[[Any], _T]) -> list[_T]:
        table = pa.table(rows) if len(rows) else pa.table({})
        parts = [table.slice(at, self.part_rows) for at in range(0, len(table), self.part_rows)]
        return [_through_pickle(_through_pickle(function)(iter(part.to_batches()))) for part in parts]

    def map(self, function: Callable[[Any], _T], items: Sequence[Any]) -> list[_T]:
        return [_through_pickle(_through_pickle(function)(_through_pickle(item))) for item in items]


def _through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def tickets(count: int, start: int = 0, alike: int = 7) -> pa.Table:
    """Return rows; every seventh repeats the question of an earlier row, at any distance."""
    numbers = range(start, start + count)
    return pa.table(
        {
            "ticket_id": [f"t{n}" for n in numbers],
            "body": [f"Where is invoice {n // 2 if n % alike == 0 else n}?" + " please" * (n % 11) for n in numbers],
            "urgent": [n % 50 == 3 for n in numbers],
            "day": pa.array([n % 3 for n in numbers], pa.int32()),
        }
    )


def labeling(**changes: Any) -> Labeling:
    """Return a definition with many small shards."""
    usual: dict[str, Any] = {
        "asset": "ticket_labels",
        "model": "openai/gpt-4o",
        "key": "ticket_id",
        "prompt": Prompt(system="You label support tickets.", user="{{ body }}"),
        "response": TicketLabel,
        "params": {"max_tokens": 50},
        "keep": ["day"],
        "limits": Limits(max_requests_per_batch=100),
    }
    return Labeling(**{**usual, **changes})


def stored(workspace: Workspace, submission: Submission) -> dict[str, Any]:
    """Return everything that a plan stores, with numbers in place of random submission ids and nonces."""
    engine = workspace.engine()
    shards = engine.ledger.shards.of_submission(submission.submission_id)
    plain = ("provider", "account", "model", "lane", "wave", "number", "requests", "bytes", "tokens")
    found: dict[str, Any] = {
        name: getattr(submission, name)
        for name in ("fingerprint", "config_fingerprint", "rows", "requests", "reused", "estimated_usd", "price_basis")
    }
    for shard in shards:
        name = f"{shard.lane.value} {shard.number}"
        with engine.payloads.checked(shard.path, shard.digest) as again, again() as file:
            lines = file.read()
        assert lines.count(shard.nonce.encode()) == shard.requests
        from_lines = [one for one, _ in requests_of(engine.payloads, shard.path, shard.nonce)]
        assert request_ids(engine.payloads, shard) == from_lines
        values = [getattr(shard, one) for one in plain]
        found[name] = values, shard.bill.estimated_usd, lines.replace(shard.nonce.encode(), b"NONCE")
    assert submission.manifest_path is not None
    found["manifest"] = engine.payloads.read_table(submission.manifest_path)
    folder = workspace.tmp_path / "payloads" / submission.manifest_path.rpartition("/")[0]
    found["files"] = sorted(file.name for file in folder.iterdir())
    for file in folder.glob("fallback-*"):
        lines = b"".join(engine.payloads.lines(str(file.relative_to(workspace.tmp_path / "payloads"))))
        nonce = lines.partition(b'"custom_id":"')[2][:17]
        found[file.name] = lines.replace(nonce, b"NONCE")
    return found


def assert_same_plan(here: dict[str, Any], there: dict[str, Any]) -> None:
    """Compare plans byte for byte, and row for row."""
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert there[name] == value, name


def by_key(table: pa.Table) -> pa.Table:
    """Return the labels in the order of their keys, without columns that differ from run to run."""
    varying = {"llm_batch_id", "llm_submitted_at", "llm_completed_at"}
    return table.select([name for name in table.column_names if name not in varying]).sort_by("ticket_id")


TARGETS = [
    Target("topic", confidence_column="sure"),
    Target("urgency", kappa_weights="quadratic"),
    Target("urgency", "urgency_felt", kind="numeric"),
]


def with_gold(labels: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return gold, and the labels with a confidence; rows and values differ, and some values are null."""
    rows = labels.select(["ticket_id", "topic", "urgency"]).sort_by("ticket_id").to_pylist()
    for n, row in enumerate(rows):
        row["urgency_felt"] = row["urgency"] + n % 7 / 3
        if n % 5 == 0:
            row.update(topic="bug", urgency=n % 6 + 1)
        if n % 11 == 0:
            row["topic"] = None
    gold = [*rows[: len(rows) * 2 // 3], *({**row, "ticket_id": f"gone {row['ticket_id']}"} for row in rows[:40])]
    sure = [None if n % 13 == 0 else n % 89 / 88 for n in range(len(labels))]
    return pa.Table.from_pylist(gold), labels.append_column("sure", pa.array(sure, pa.float64()))


def assert_same_report(here: EvaluationReport, there: EvaluationReport) -> None:
    """Compare all statistics that need only one candidate, to the last digit."""
    assert (here.evaluations, here.confusions, here.calibrations) == (
        there.evaluations,
        there.confusions,
        there.calibrations,
    )
    assert here.per_class.equals(there.per_class)


SMALL = BatchLimits(max_requests=100, max_bytes=200_000_000, min_requests=40)
