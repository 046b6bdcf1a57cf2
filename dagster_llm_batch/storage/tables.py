"""The ledger's tables for SQLAlchemy, and rows as the frozen records of `records.py`. The DDL is in `migrations.py`.

Money is text, so it is exact on every database; times are UTC on the way in and aware on the way out; mappings and
tuples are JSON text with sorted keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.records import Event, Shard, Submission, SubmissionState
from dagster_llm_batch.types import BatchStatus, Lane, PriceBasis

__all__ = ["EVENT", "LEASE", "METADATA", "SHARD", "SUBMISSION", "from_row", "to_row"]

_R = TypeVar("_R", Submission, Shard, Event)


class _Utc(TypeDecorator[datetime]):
    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise LedgerError(f"The ledger takes aware times only; got {value!r}. Use datetime.now(timezone.utc).")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc  # SQLite keeps it as sortable text

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class _AsText(TypeDecorator[Any]):
    """A value that is stored as text by `dump` and comes back by `load`."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, load: Callable[[str], Any], dump: Callable[[Any], str]) -> None:
        super().__init__()
        self.load = load
        self.dump = dump

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's hook
        return None if value is None else self.dump(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002  # SQLAlchemy's hook
        return None if value is None else self.load(value)


def _word(value: Enum) -> str:
    return str(value.value)


def _json(value: Mapping[str, int] | tuple[str, ...]) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else list(value), sort_keys=True)


def _names(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


_UTC = _Utc()
_MONEY = _AsText(Decimal, str)

METADATA = sa.MetaData()


def _column(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]], *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=null)


SUBMISSION = sa.Table(
    "submission",
    METADATA,
    sa.Column("submission_id", sa.Text, primary_key=True),
    _column("namespace", sa.Text),
    _column("asset", sa.Text),
    _column("partition", sa.Text),
    _column("fingerprint", sa.Text),
    _column("config_fingerprint", sa.Text),
    _column("attempt", sa.BigInteger),
    _column("provider", sa.Text),
    _column("account", sa.Text),
    _column("model", sa.Text),
    _column("rows", sa.BigInteger),
    _column("requests", sa.BigInteger),
    _column("reused", sa.BigInteger),
    _column("waves", sa.BigInteger),
    _column("state", _AsText(SubmissionState, _word)),
    _column("manifest_path", sa.Text, null=True),
    _column("estimated_usd", _MONEY, null=True),
    _column("cost_usd", _MONEY, null=True),
    _column("realtime_usd", _MONEY, null=True),
    _column("price_basis", _AsText(PriceBasis, _word), null=True),
    _column("outcomes", _AsText(json.loads, _json)),
    _column("created_at", _UTC),
    _column("settled_at", _UTC, null=True),
    _column("delivered_at", _UTC, null=True),
    _column("run_id", sa.Text, null=True),
    _column("reused_from", _AsText(_names, _json)),
    _column("deadline_at", _UTC, null=True),
)

SHARD = sa.Table(
    "shard",
    METADATA,
    sa.Column("shard_id", sa.Text, primary_key=True),
    _column("submission_id", sa.Text),
    _column("provider", sa.Text),
    _column("account", sa.Text),
    _column("wave", sa.BigInteger),
    _column("number", sa.BigInteger),
    _column("state", _AsText(ShardState, _word)),
    _column("nonce", sa.Text),
    _column("requests", sa.BigInteger),
    _column("bytes", sa.BigInteger),
    _column("path", sa.Text),
    _column("digest", sa.Text),
    _column("estimated_usd", _MONEY, null=True),
    _column("batch_id", sa.Text, null=True),
    _column("planned_at", _UTC),  # when it was stored: what `spent` counts from; the ledger's own
    _column("sent_at", _UTC, null=True),
    _column("submitted_at", _UTC, null=True),
    _column("ended_at", _UTC, null=True),
    _column("collected_at", _UTC, null=True),
    _column("polled_at", _UTC, null=True),
    _column("status", _AsText(BatchStatus, _word), null=True),
    _column("total", sa.BigInteger, null=True),
    _column("done", sa.BigInteger, null=True),
    _column("failed", sa.BigInteger, null=True),
    _column("reason", sa.Text, null=True),
    _column("retryable", sa.Boolean),
    _column("raw_path", sa.Text, null=True),
    _column("results_path", sa.Text, null=True),
    _column("cost_usd", _MONEY, null=True),
    _column("model", sa.Text),
    _column("lane", _AsText(Lane, _word)),
    _column("tokens", sa.BigInteger),
    _column("waits_until", _UTC, null=True),
    _column("carrier", sa.Text, null=True),
    _column("padding", sa.BigInteger),
)

EVENT = sa.Table(
    "event",
    METADATA,
    sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    _column("submission_id", sa.Text),
    _column("shard_id", sa.Text, null=True),
    _column("at", _UTC),
    _column("kind", sa.Text),
    _column("from_state", sa.Text, null=True),
    _column("to_state", sa.Text, null=True),
    _column("detail", sa.Text, null=True),
)

LEASE = sa.Table(
    "lease",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    _column("owner", sa.Text),
    _column("expires_at", _UTC),
)


_NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in (Submission, Shard, Event)}


def to_row(record: Submission | Shard) -> dict[str, Any]:
    """The record's fields by column name."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def from_row(kind: type[_R], row: Mapping[Any, Any]) -> _R:
    """The record that a row (a RowMapping) holds; the ledger's own columns are left out."""
    return kind(**{name: row[name] for name in _NAMES[kind]})
