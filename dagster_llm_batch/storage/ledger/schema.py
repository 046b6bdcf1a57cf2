"""The ledger's tables for SQLAlchemy, and rows as the frozen records of `records.py`. The DDL is in `migrations.py`.

Money is text, so it is exact on every database. Times are stored in UTC and read as aware. Mappings and tuples are JSON
text with sorted keys.

Text is of two kinds. Names (keys, paths, accounts) are identity: they are stored exactly, or refused before anything is
sent. Foreign text (reasons, details, a vendor's batch id) is always stored, since its event must not be lost.
Characters that a database refuses become U+FFFD, and text that is too long is cut.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from operator import itemgetter
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.states import BATCH_SEEN, OWN_SEEN, BatchState, HoldReason, OwnState, Reason, ShardState
from dagster_llm_batch.storage.ledger.records import (
    Batch,
    Bill,
    Event,
    Hold,
    Judgment,
    Room,
    Shard,
    Submission,
    SubmissionState,
    Tombstone,
    Upload,
)
from dagster_llm_batch.types import BatchStatus, Cause, Lane, PriceBasis

__all__ = [
    "BATCH",
    "BILL",
    "EVENT",
    "HAS_BILL",
    "HOLD",
    "IS_FIRST",
    "JUDGMENT",
    "LEASE",
    "MAY_QUEUE",
    "METADATA",
    "SHARD",
    "SHARDS",
    "SHARD_ROW",
    "SUBMISSION",
    "TOMBSTONE",
    "UPDATE_BATCH",
    "UPDATE_BILL",
    "UPDATE_SHARD",
    "UPLOAD",
    "UPLOAD_USE",
    "from_row",
    "in_state",
    "to_row",
    "with_columns",
]

_R = TypeVar("_R", Submission, Shard, Event, Hold, Tombstone, Judgment, Upload)


def _as_is(value: Any) -> Any:
    return value


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

    # A tick of a sensor reads a million values, and most of them are null. Two hooks of SQLAlchemy would take twice as
    # long as this one.
    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], datetime | None]:
        read: Callable[[Any], Any] = self.impl_instance.result_processor(dialect, coltype) or _as_is
        if dialect.name == "sqlite":
            return lambda value: None if value is None else read(value).replace(tzinfo=UTC)
        return lambda value: None if value is None else read(value).astimezone(UTC)


class _AsText(TypeDecorator[Any]):
    """A value that `dump` converts to text, and `load` converts back."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, load: Callable[[str], Any], dump: Callable[[Any], str]) -> None:
        super().__init__()
        self.load = load
        self.dump = dump

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's hook
        return None if value is None else self.dump(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        del dialect, coltype  # text has no processor of its own
        kind: object = self.load
        load = _by_value(kind) if isinstance(kind, type) and issubclass(kind, Enum) else self.load
        return lambda value: None if value is None else load(value)


def _by_value(kind: type[Enum]) -> Callable[[str], Enum]:
    """Return a function like `kind` that looks a value up, without the calls of an enum."""
    members = {member.value: member for member in kind}
    return lambda value: members.get(value) or kind(value)


def _word(value: Enum) -> str:
    return str(value.value)


def _json(value: Mapping[str, Any] | tuple[str, ...]) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else list(value), sort_keys=True)


def _event_data(data: Mapping[str, Any]) -> str:
    """Return the data of an event or a hold as JSON. Strings may come from others, and are always stored."""
    return json.dumps(_cleaned(data), sort_keys=True)


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _cleaned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cleaned(part) for part in value]
    return _storable(value, _TEXT_CHARS) if isinstance(value, str) else value


def _mapping(text: str) -> Any:
    # Most submissions have no outcomes yet.
    return {} if text == "{}" else json.loads(text)


def _names(text: str) -> tuple[str, ...]:
    return () if text == "[]" else tuple(json.loads(text))


# PostgreSQL refuses NUL, and the drivers of both databases cannot encode half of a surrogate pair. The column cleans
# text, so that callers cannot forget to. Otherwise a NUL in a vendor's message would roll back the very transaction
# that records that a batch failed, or was created.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_TEXT_CHARS = 10_000
# Batch ids are indexed: PostgreSQL accepts up to 2,700 bytes of an indexed text, and a character is up to 4 bytes.
_ID_CHARS = 500
# A count is multiplied by a number of requests, and must not overflow. Batches are much smaller.
_COUNTS_BELOW = 2**31


class _Name(TypeDecorator[str]):
    """Text that is identity. Raises LedgerError for text that cannot be stored exactly, and so rolls back."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's hook
        if value is None or (match := _UNSTORABLE.search(value)) is None:
            return value
        name = f"The {self.column.replace('_', ' ')} {ascii(value)[:200]}"
        raise LedgerError(
            f"{name} has the character U+{ord(match[0]):04X}, which databases cannot store, and a name must "
            "be stored exactly. Nothing was changed. Take that character out."
        )


class _ForeignText(TypeDecorator[str]):
    """Text from outside, of any content and length. Always stored, cleaned and cut to `most_chars` characters."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, most_chars: int) -> None:
        super().__init__()
        self.most_chars = most_chars

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's hook
        return None if value is None else _storable(value if isinstance(value, str) else str(value), self.most_chars)


class _Count(TypeDecorator[int]):
    """A number that a vendor reports. An impossible number is stored as unknown."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:  # noqa: ARG002  # SQLAlchemy's hook
        return value if isinstance(value, int) and abs(value) < _COUNTS_BELOW else None


def _storable(text: str, most_chars: int) -> str:
    """Return the text as every database stores it. Cut text ends with a digest, so that two cut ids stay different."""
    if len(text) > most_chars:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        text = f"{text[: most_chars - 17]}…{digest}"
    return _UNSTORABLE.sub("\ufffd", text)


_UTC = _Utc()
_MONEY = _AsText(Decimal, str)

METADATA = sa.MetaData()


def _column(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]], *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=null)


def _name(column: str, *, null: bool = False, key: bool = False) -> sa.Column[Any]:
    return sa.Column(column, _Name(column), nullable=null, primary_key=key)


def _foreign_text(column: str, most_chars: int = _TEXT_CHARS) -> sa.Column[Any]:
    return sa.Column(column, _ForeignText(most_chars), nullable=True)


SUBMISSION = sa.Table(
    "submission",
    METADATA,
    _name("submission_id", key=True),
    _name("namespace"),
    _name("asset"),
    _name("partition"),
    _name("fingerprint"),
    _name("config_fingerprint"),
    _column("attempt", sa.BigInteger),
    _name("provider"),
    _name("account"),
    _name("model"),
    _column("rows", sa.BigInteger),
    _column("requests", sa.BigInteger),
    _column("reused", sa.BigInteger),
    _column("waves", sa.BigInteger),
    _column("state", _AsText(SubmissionState, _word)),
    _name("manifest_path", null=True),
    _column("estimated_usd", _MONEY, null=True),
    _column("cost_usd", _MONEY, null=True),
    _column("realtime_usd", _MONEY, null=True),
    _column("price_basis", _AsText(PriceBasis, _word), null=True),
    _column("outcomes", _AsText(_mapping, _json)),
    _column("created_at", _UTC),
    _column("settled_at", _UTC, null=True),
    _column("delivered_at", _UTC, null=True),
    _name("run_id", null=True),
    _column("reused_from", _AsText(_names, _json)),
    _column("deadline_at", _UTC, null=True),
    _column("tombstones", sa.BigInteger, null=True),
    _column("p95_usd", _MONEY, null=True),
    _column("bound_usd", _MONEY, null=True),
    _column("p05_usd", _MONEY, null=True),
    _column("learned_from", sa.BigInteger, null=True),
    _column("billed", _AsText(json.loads, _json), null=True),
    _column("tags", _AsText(json.loads, _json), null=True),
    _column("reserved_usd", _MONEY, null=True),
    _column("audit", _AsText(json.loads, _json), null=True),
    _column("questions", sa.BigInteger, null=True),
    _column("p50_end_at", _UTC, null=True),
    _column("p90_end_at", _UTC, null=True),
    _column("end_basis", _AsText(json.loads, _json), null=True),
    _column("tuning", _AsText(json.loads, _json), null=True),
    _column("pruned_at", _UTC, null=True),
    _column("landed_over_at", _UTC, null=True),
    _column("measured_at", _UTC, null=True),
    _column("first_delivered_at", _UTC, null=True),
    _column("reported_at", _UTC, null=True),
    _column("is_cascade", sa.Boolean, null=True),
)

BATCH = sa.Table(
    "batch",
    METADATA,
    _name("batch_key", key=True),
    _name("tag"),
    _name("provider"),
    _name("account"),
    _name("model"),
    _column("lane", _AsText(Lane, _word)),
    _column("state", _AsText(BatchState, _word)),
    _foreign_text("batch_id", _ID_CHARS),
    _column("requests", sa.BigInteger),
    _column("padding", sa.BigInteger),
    _column("sent_at", _UTC),
    _column("submitted_at", _UTC, null=True),
    _column("ended_at", _UTC, null=True),
    _column("polled_at", _UTC, null=True),
    _column("status", _AsText(BatchStatus, _word), null=True),
    _column("total", _Count, null=True),
    _column("done", _Count, null=True),
    _column("failed", _Count, null=True),
    _column("retryable", sa.Boolean),
    _column("erased_there_at", _UTC, null=True),
)

SHARD_ROW = sa.Table(
    "shard",
    METADATA,
    _name("shard_id", key=True),
    _name("submission_id"),
    _name("provider"),
    _name("account"),
    _column("wave", sa.BigInteger),
    _column("number", sa.BigInteger),
    _column("state", _AsText(OwnState, _word)),
    _name("nonce"),
    _column("requests", sa.BigInteger),
    _column("bytes", sa.BigInteger),
    _name("path"),
    _name("digest"),
    _column("planned_at", _UTC),  # when it was stored: its place in the queue; the ledger's own
    _name("batch_key", null=True),
    _column("place", sa.BigInteger),
    _column("sends", sa.BigInteger),
    _column("sent_requests", sa.BigInteger, null=True),
    _column("ended_at", _UTC, null=True),  # for shards that were never sent or are abandoned
    _column("collected_at", _UTC, null=True),
    _column("looked_at", _UTC, null=True),
    _foreign_text("reason"),
    _name("raw_path", null=True),
    _name("results_path", null=True),
    _name("model"),
    _column("lane", _AsText(Lane, _word)),
    _column("tokens", sa.BigInteger),
    _column("waits_until", _UTC, null=True),
    _column("cause", _AsText(Cause, _word), null=True),
    _column("erased", sa.BigInteger, null=True),
    _column("reported_usd", _MONEY, null=True),
    _column("refusals", sa.BigInteger),
    _column("no_room_at", _UTC, null=True),
    _column("most_tokens", sa.BigInteger, null=True),
    _column("input_bound", sa.BigInteger, null=True),
    _column("request_file_done_at", _UTC, null=True),
    _column("is_escalation", sa.Boolean, null=True),
    _column("most_requests", sa.BigInteger, null=True),
    _column("answered", sa.BigInteger, null=True),
    _column("asked_again", _AsText(json.loads, _json), null=True),
    _column("refused_at", _UTC, null=True),
    _column("refused_tokens", sa.BigInteger, null=True),
    _column("most_at_once", sa.BigInteger, null=True),
    _column("reason_kind", _AsText(Reason, _word), null=True),
    _column("has_uploads", sa.Boolean, null=True),
)

_S, _B = SHARD_ROW.c, BATCH.c


def _literal(word: Enum) -> sa.ColumnElement[Any]:
    # Not a parameter: SQLite uses an index of some states only if the query contains them.
    return sa.literal_column(f"'{word.value}'", sa.Text)


def _seen() -> Iterator[sa.ColumnElement[Any]]:
    """Yield the columns of shards and of their batches: a batch's counts are divided by numbers of requests."""
    # Not every provider reports the batch's total number of requests.
    total = sa.func.coalesce(_B.total, sa.case((_B.done > _S.sent_requests, _B.requests)))
    is_part = total > _S.sent_requests
    # A shard without a batch was never sent.
    unsent = _S.batch_key.is_(None) & (_S.state != _literal(OwnState.PLANNED))
    text, flag = sa.Text(), sa.Boolean()
    yield from (column for column in _S if column.name not in {"state", "ended_at", "looked_at"})
    yield _S.state.label("own_state")
    yield _B.state.label("batch_state")
    yield from (_B[name].label(f"batch_{name}") for name in ("provider", "account", "model", "lane"))
    own = [(_S.state == _literal(state), _literal(seen)) for state, seen in OWN_SEEN.items()]
    of_batch = [(_B.state == _literal(state), _literal(seen)) for state, seen in BATCH_SEEN.items()]
    yield sa.type_coerce(sa.case(*own, *of_batch), _AsText(ShardState, _word)).label("state")
    yield _B.batch_id
    yield sa.case((_S.place == 0, sa.func.coalesce(_B.padding, 0)), else_=0).label("padding")
    yield from (_B[name] for name in ("sent_at", "submitted_at", "erased_there_at"))
    yield sa.func.coalesce(_S.ended_at, _B.ended_at).label("ended_at")
    yield sa.func.coalesce(_B.polled_at, _S.looked_at).label("polled_at")
    status = sa.case((unsent, _literal(BatchStatus.CANCELED)), else_=sa.type_coerce(_B.status, text))
    yield sa.type_coerce(status, _B.status.type).label("status")
    yield sa.case((is_part, _S.sent_requests), else_=_B.total).label("total")
    for count in (_B.done, _B.failed):
        yield sa.case((is_part, count * _S.sent_requests // total), else_=count).label(count.name)
    yield sa.type_coerce(sa.func.coalesce(_B.retryable, sa.false()), flag).label("retryable")


def _as_text(query: sa.Select[Any], name: str) -> sa.Subquery:
    """Return the query as a subquery that is text for SQLAlchemy, which compiles it into each statement.

    A tick has a new connection and so compiles all of its statements. With the columns of the query, that takes a
    quarter of a tick over a few hundred shards.
    """
    text = str(query.compile(compile_kwargs={"literal_binds": True}))
    return sa.text(text).columns(*(sa.column(each.name, each.type) for each in query.selected_columns)).subquery(name)


SHARD = _as_text(sa.select(*_seen()).select_from(SHARD_ROW.outerjoin(BATCH, _B.batch_key == _S.batch_key)), "shards")
"""Shards with the facts of their batches, for reading. SHARD_ROW and BATCH are the tables for writing."""


IS_FIRST = SHARD.c.place == sa.literal_column("0")
"""The condition for shards that are the first in their batch, or have no batch."""

MAY_QUEUE = SHARD.c.own_state.in_([_literal(OwnState.PLANNED), _literal(OwnState.SENT)])
"""The condition for shards that are not over yet, which has an index."""


def in_state(*states: ShardState) -> sa.ColumnElement[bool]:
    """Return the condition for shards in one of these states, which has indexes."""
    own = [_literal(state) for state, seen in OWN_SEEN.items() if seen in states]
    of_batch = [_literal(state) for state, seen in BATCH_SEEN.items() if seen in states]
    conditions: list[sa.ColumnElement[bool]] = []
    if own:
        conditions.append(SHARD.c.own_state == own[0] if len(own) == 1 else SHARD.c.own_state.in_(own))
    if of_batch:
        conditions.append((SHARD.c.own_state == _literal(OwnState.SENT)) & SHARD.c.batch_state.in_(of_batch))
    return sa.or_(*conditions)


BILL = sa.Table(
    "bill",
    METADATA,
    _name("shard_id", key=True),
    _column("estimated_usd", _MONEY, null=True),
    _column("bound_usd", _MONEY, null=True),
    _column("reserved_usd", _MONEY, null=True),
    _column("cost_usd", _MONEY, null=True),
    _column("replies", sa.BigInteger, null=True),
    _column("input_tokens", sa.BigInteger, null=True),
    _column("output_tokens", sa.BigInteger, null=True),
    _column("cache_read_tokens", sa.BigInteger, null=True),
    _column("known_usd", _MONEY, null=True),
    _column("unpriced", sa.BigInteger, null=True),
    _column("realtime_usd", _MONEY, null=True),
    _column("unlabeled_usd", _MONEY, null=True),
    _column("padding_usd", _MONEY, null=True),
)

UPDATE_BATCH = sa.update(BATCH).where(BATCH.c.batch_key == sa.bindparam("key"))
"""Set columns of the batch whose key is the parameter `key`."""

UPDATE_SHARD = sa.update(SHARD_ROW).where(SHARD_ROW.c.shard_id == sa.bindparam("key"))
"""Set columns of the shard whose id is the parameter `key`."""

UPDATE_BILL = sa.update(BILL).where(BILL.c.shard_id == sa.bindparam("key"))
"""Set columns of the bill of this shard."""

HAS_BILL = BILL.c.shard_id == SHARD.c.shard_id
"""The condition that joins bills to shards: each shard has one."""

SHARDS = sa.select(SHARD, *(column for column in BILL.c if column is not BILL.c.shard_id)).join_from(
    SHARD, BILL, HAS_BILL
)
"""The query for shards with their bills, as `from_row` reads them."""

EVENT = sa.Table(
    "event",
    METADATA,
    sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    _name("submission_id"),
    _name("shard_id", null=True),
    _column("at", _UTC),
    _name("kind"),
    _name("from_state", null=True),
    _name("to_state", null=True),
    _foreign_text("detail"),
    _column("data", _AsText(json.loads, _event_data), null=True),
)

HOLD = sa.Table(
    "hold",
    METADATA,
    _name("subject", key=True),
    sa.Column("reason", _AsText(HoldReason, _word), primary_key=True, nullable=False),
    _name("submission_id"),
    _name("shard_id", null=True),
    _column("since", _UTC),
    _column("times", sa.BigInteger),
    _column("data", _AsText(json.loads, _event_data), null=True),
    _foreign_text("words"),
)

TOMBSTONE = sa.Table(
    "tombstone",
    METADATA,
    sa.Column("tombstone_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    _name("namespace"),
    _name("asset"),
    _name("partition", null=True),
    _name("salt"),
    _name("digest"),
    _column("at", _UTC),
    _column("undone_at", _UTC, null=True),
)

JUDGMENT = sa.Table(
    "judgment",
    METADATA,
    sa.Column("judgment_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    _name("form_id"),
    _name("namespace"),
    _name("dataset"),
    _name("partition"),
    _name("row_key"),
    _column("annotator", _ForeignText(_TEXT_CHARS)),
    _name("kind"),
    _column("answer", _AsText(json.loads, _json), null=True),
    _foreign_text("comment"),
    _column("seconds", sa.Float, null=True),
    _column("sample", _AsText(json.loads, _json), null=True),
    _column("at", _UTC),
)

UPLOAD = sa.Table(
    "upload",
    METADATA,
    _name("upload_key", key=True),
    _name("namespace"),
    _name("provider"),
    _name("account"),
    _name("name"),
    _column("bytes", sa.BigInteger),
    _column("began_at", _UTC),
    _column("needed_at", _UTC),
    _foreign_text("file_id", _ID_CHARS),
    _column("uploaded_at", _UTC, null=True),
    _column("expires_at", _UTC, null=True),
    _column("lost_at", _UTC, null=True),
)

UPLOAD_USE = sa.Table("upload_use", METADATA, _name("upload_key", key=True), _name("submission_id", key=True))

LEASE = sa.Table(
    "lease",
    METADATA,
    _name("name", key=True),
    _name("owner"),
    _column("expires_at", _UTC),
)


_PARTS: dict[str, type[Batch | Room | Bill]] = {"batch": Batch, "room": Room, "bill": Bill}
_KINDS = (Submission, Shard, Event, Hold, Tombstone, Judgment, Upload, *_PARTS.values())
_NAMES = {kind: tuple(field.name for field in fields(kind) if field.name not in _PARTS) for kind in _KINDS}
_VALUES = {kind: itemgetter(*names) for kind, names in _NAMES.items()}


def to_row(record: Submission | Shard | Bill | Hold | Tombstone | Judgment | Upload) -> dict[str, Any]:
    """Return the record's fields by column name. The bill of a shard has its own row."""
    records = (record, record.batch, record.room) if isinstance(record, Shard) else (record,)
    return {name: getattr(each, name) for each in records for name in _NAMES[type(each)]}


def from_row(kind: type[_R], row: Mapping[Any, Any]) -> _R:
    """Return the record in a row (a RowMapping), without the ledger's own columns. See SHARDS."""
    # A sensor builds 100,000 records in a tick: all columns at once take a third less time than one after the other.
    values = dict(zip(_NAMES[kind], _VALUES[kind](row), strict=True))
    if kind is Shard:
        for part, of in _PARTS.items():
            values[part] = of(**dict(zip(_NAMES[of], _VALUES[of](row), strict=True)))
    return kind(**values)


def with_columns(shard: Shard, columns: Mapping[str, Any]) -> Shard:
    """Return the shard with these values in its own columns, or in those of its batch, room or bill."""
    values = dict(columns)
    for part, of in _PARTS.items():
        if of_part := {name: values.pop(name) for name in _NAMES[of] if name in values}:
            values[part] = replace(getattr(shard, part), **of_part)
    return replace(shard, **values)
