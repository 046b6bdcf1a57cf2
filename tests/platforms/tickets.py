"""The tickets that all platforms label: twelve, on three days around the night in which the clock goes back in Europe.

Every kind of partitions cuts the same tickets, so that datasets of different partitions have rows in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, ConfigDict

from dagster_llm_batch import Embedding, Moderation

__all__ = [
    "CUSTOMERS",
    "PARTITIONS",
    "RESPONSES",
    "Ticket",
    "partition_column",
    "partition_expr",
    "partition_keys",
    "tickets_of",
]

TOPICS = ("billing", "bug", "how_to")
CUSTOMERS = "customers"
_BERLIN = "Europe/Berlin"
_REFUSED, _GARBLED = "REFUSED", "GARBLED"
CRON = {"cron_schedule": "0 0 * * 1-5", "fmt": "%Y-%m-%d"}

# In the form of defs.yaml; Python's partitions are made from them.
PARTITIONS: Mapping[str, Mapping[str, Any] | None] = {
    "none": None,
    "daily": {"type": "daily", "start_date": "2025-10-25", "end_date": "2025-10-28"},
    "later": {"type": "daily", "start_date": "2025-10-26", "end_date": "2025-10-28"},
    "berlin": {"type": "daily", "start_date": "2025-10-25", "end_date": "2025-10-28", "timezone": _BERLIN},
    "hourly": {"type": "hourly", "start_date": "2025-10-26-00:00", "end_date": "2025-10-26-03:00"},
    "berlin_hourly": {
        "type": "hourly",
        "start_date": "2025-10-26-01:00",
        "end_date": "2025-10-26-04:00",
        "timezone": _BERLIN,
    },
    "weekly": {"type": "weekly", "start_date": "2025-10-19", "end_date": "2025-11-02"},
    "monthly": {"type": "monthly", "start_date": "2025-10-01", "end_date": "2025-11-01"},
    "weekdays": {"type": "time_window", "start_date": "2025-10-24", "end_date": "2025-10-28", **CRON},
    "static": {"type": "static", "partition_keys": ["eu", "us"]},
    "dynamic": {"type": "dynamic", "name": CUSTOMERS},
    "multi": {
        "type": "multi",
        "dimensions": {
            "day": {"type": "daily", "start_date": "2025-10-25", "end_date": "2025-10-28"},
            "region": {"type": "static", "partition_keys": ["eu", "us"]},
        },
    },
    "multi_dynamic": {
        "type": "multi",
        "dimensions": {
            "customer": {"type": "dynamic", "name": CUSTOMERS},
            "region": {"type": "static", "partition_keys": ["eu", "us"]},
        },
    },
}


class _Strict(BaseModel):
    # Without bounds: some vendors remove them from schemas, and the emulated model would not keep them. Servers with
    # OpenAI's schema check require that extra fields are forbidden, even servers for which the package does not know
    # this.
    model_config = ConfigDict(extra="forbid")


class _Detail(_Strict):
    reason: str
    score: int


class LiteralLabel(_Strict):
    """Classes and numbers."""

    topic: Literal["billing", "bug", "how_to"]
    confidence: float


class NestedLabel(LiteralLabel):
    """With a part that has fields of its own."""

    detail: _Detail


class ListLabel(LiteralLabel):
    """With lists, of texts and of parts."""

    tags: list[str]
    parts: list[_Detail]


SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": list(TOPICS)}, "confidence": {"type": "number"}},
    "required": ["topic", "confidence"],
    "additionalProperties": False,
}
RESPONSES: Mapping[str, Any] = {
    "literal": LiteralLabel,
    "nested": NestedLabel,
    "list": ListLabel,
    "schema": SCHEMA,
    "text": None,
    "embedding": Embedding(8),
    "moderation": Moderation(["hate", "violence"]),
}

Ticket = dict[str, Any]


def partitions_def(kind: str) -> dg.PartitionsDefinition[Any] | None:
    """Return Dagster's partitions of this kind."""
    settings = PARTITIONS[kind]
    return None if settings is None else _made(settings)


def _made(settings: Mapping[str, Any]) -> dg.PartitionsDefinition[Any]:
    given = {name: value for name, value in settings.items() if name != "type"}
    match settings["type"]:
        case "multi":
            return dg.MultiPartitionsDefinition({name: _made(one) for name, one in given["dimensions"].items()})
        case "time_window":
            return dg.TimeWindowPartitionsDefinition(
                start=given["start_date"],
                end=given["end_date"],
                fmt=given["fmt"],
                cron_schedule=given["cron_schedule"],
            )
        case "static":
            return dg.StaticPartitionsDefinition(given["partition_keys"])
        case "dynamic":
            return dg.DynamicPartitionsDefinition(name=given["name"])
        case word:
            kinds: Mapping[str, Any] = {
                "hourly": dg.HourlyPartitionsDefinition,
                "daily": dg.DailyPartitionsDefinition,
                "weekly": dg.WeeklyPartitionsDefinition,
                "monthly": dg.MonthlyPartitionsDefinition,
            }
            made: dg.PartitionsDefinition[Any] = kinds[word](**given)
            return made


def partition_keys(kind: str, instance: dg.DagsterInstance) -> list[str | None]:
    """Return the partitions of this kind; an unpartitioned dataset has the single key None."""
    definition = partitions_def(kind)
    if definition is None:
        return [None]
    return list(definition.get_partition_keys(dynamic_partitions_store=instance))


def partition_column(kind: str) -> Any:
    """Return the column, or columns by dimension, in which stores of tables find the partition."""
    columns = {
        "none": None,
        "static": "region",
        "dynamic": "customer",
        "multi": {"day": "day", "region": "region"},
        "multi_dynamic": {"customer": "customer", "region": "region"},
    }
    return columns.get(kind, "day")


def partition_expr(kind: str) -> Any:
    """Return DuckDB's expressions for the partition in a table that has only the partition's key."""
    first, second = (f"split_part(partition, '|', {part})" for part in (1, 2))
    exprs = {
        "none": None,
        "static": "partition",
        "dynamic": "partition",
        "multi": {"day": f"CAST({first} AS TIMESTAMP)", "region": second},
        "multi_dynamic": {"customer": first, "region": second},
    }
    return exprs.get(kind, "CAST(left(partition, 10) AS TIMESTAMP)")


def first_day(kind: str, partition: str | None) -> date | None:
    """Return the first day of a time partition, or None for other partitions."""
    definition = partitions_def(kind)
    if partition is None or not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        return None
    return definition.time_window_for_partition_key(partition).start.date()


def _all(content: str, id_kind: str) -> list[tuple[datetime, Ticket]]:
    tickets = []
    for number in range(12):
        day, hour = divmod(number, 4)
        at = datetime(2025, 10, 25 + day, (0, 1, 2, 12)[hour], 30, tzinfo=UTC)
        topic = TOPICS[number % 3]
        body = f"Ticket {number:02d}: my {topic} question."
        if content == "all_refused" or (content == "refused" and number % 4 == 1):
            body += f" {_REFUSED}"
        if content == "garbled" and number % 4 == 1:
            body += f" {_GARBLED}"
        if content == "blank" and number % 4 == 2:
            body = "  "
        if content == "duplicates":
            body = f"Always my {topic} question."
        if content == "unicode":
            body = f'Ticket {number:02d}: "{topic}" \u00fc\u2028 \U0001f600 \u05d0\u0301\n\ttab, {{{{ x }}}} | \\ '
        ticket = {
            "ticket_id": number if id_kind == "integer" else f"T{number:02d}",
            "body": body,
            "day": at.replace(hour=0, minute=0, tzinfo=None),
            "region": ("eu", "us", "us")[number % 3],
            "customer": ("c1", "c2")[number % 2],
            "urgent": number % 4 == 0,
        }
        tickets.append((at, ticket))
    return [] if content == "empty" else tickets


def tickets_of(kind: str, partition: str | None, content: str = "plain", id_kind: str = "text") -> list[Ticket]:
    """Return the tickets of one partition."""
    definition = partitions_def(kind)
    return [ticket for at, ticket in _all(content, id_kind) if _is_in(definition, partition, at, ticket)]


def _is_in(definition: Any, partition: str | None, at: datetime, ticket: Ticket) -> bool:
    if definition is None or partition is None:
        return True
    if isinstance(definition, dg.MultiPartitionsDefinition):
        parts = definition.get_partition_key_from_str(partition).keys_by_dimension
        return all(_is_in(one.partitions_def, parts[one.name], at, ticket) for one in definition.partitions_defs)
    if isinstance(definition, dg.TimeWindowPartitionsDefinition):
        window = definition.time_window_for_partition_key(partition)
        return window.start <= at < window.end
    return partition in (ticket["region"], ticket["customer"])


def gold(id_kind: str) -> list[Ticket]:
    """Return human labels of every ticket. One of them differs from the emulated model's label."""
    return [
        {"ticket_id": ticket["ticket_id"], "topic": TOPICS[0] if number == 1 else TOPICS[number % 3]}
        for number, (_, ticket) in enumerate(_all("plain", id_kind))
    ]
