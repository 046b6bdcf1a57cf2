"""From Kafka's messages to Arrow: those that can be read, with the columns of their content, and those that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.streams.consumer import lost_text
from dagster_llm_batch.streams.windows import OffsetRange

if TYPE_CHECKING:
    from confluent_kafka import Message

__all__ = ["KEY", "REJECT_SCHEMA", "Content", "lost_rows", "message_id"]

KEY = "message_id"
_WHERE = [
    pa.field(KEY, pa.string(), nullable=False),
    pa.field("kafka_partition", pa.int32()),
    pa.field("kafka_offset", pa.int64()),
    pa.field("kafka_timestamp", pa.timestamp("ms", "UTC")),
]
_HEADERS = pa.field("kafka_headers", pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())])))
REJECT_SCHEMA = pa.schema(
    [
        *_WHERE,
        pa.field("kafka_key", pa.binary()),
        _HEADERS,
        pa.field("kafka_value", pa.binary()),
        pa.field("offsets", pa.int64()),
        pa.field("reason", pa.string()),
    ]
)
"""One row for each message that cannot be read (`offsets` 1), and for each range of offsets that retention deleted."""
_BYTES = pa.field("value", pa.binary())


def message_id(topic: str, partition: int, offset: int) -> str:
    """Return the id of a message, made of where it is in the log: it never changes."""
    return f"{topic}-{partition}-{offset}"


class Content:
    """The form of a topic's messages.

    Args:
        message: A pydantic model or a JSON Schema (one column a field), None (UTF-8 text, column `text`) or `bytes`
            (column `value`).
        key: Whether keys are UTF-8 text or bytes.
        id_header: The header with the message's id, for messages that came from another topic.
    """

    def __init__(self, message: Any, key: Literal["text", "bytes"], id_header: str | None = None) -> None:
        self._id_header = id_header
        self._reader = None if message is bytes else Reader(message)
        self._key_is_text = key == "text"
        taken = {*self._own.names} & {field.name for field in self._fields}
        if taken:
            raise ConfigError(
                f"The messages' fields {', '.join(sorted(taken))} are names of Kafka's own columns; rename them."
            )

    @property
    def _fields(self) -> list[pa.Field]:
        return [_BYTES] if self._reader is None else list(self._reader.fields)

    @property
    def _own(self) -> pa.Schema:
        kind = pa.string() if self._key_is_text else pa.binary()
        return pa.schema([*_WHERE, pa.field("kafka_key", kind), _HEADERS])

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of readable messages: `message_id`, Kafka's, then the columns of the content."""
        return pa.schema([*self._own, *self._fields])

    def read(self, messages: Sequence[Message]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the messages in two batches: readable ones (`schema`), and unreadable ones (REJECT_SCHEMA)."""
        keys = [self._key(message) for message in messages]
        columns, reasons = self._values(messages)
        reasons = [key_reason or reason for (_, key_reason), reason in zip(keys, reasons, strict=True)]
        where = [_where(message) for message in messages]
        if self._id_header is not None:
            where = [self._identified(row) for row in where]
        own = pa.RecordBatch.from_pylist(
            [{**row, "kafka_key": key} for row, (key, _) in zip(where, keys, strict=True)], schema=self._own
        )
        good = pa.array([reason is None for reason in reasons], pa.bool_())
        readable = pa.RecordBatch.from_arrays([*own.columns, *columns], schema=self.schema).filter(good)
        rejects = [
            {**row, "kafka_key": message.key(), "kafka_value": message.value(), "offsets": 1, "reason": reason}
            for row, message, reason in zip(where, messages, reasons, strict=True)
            if reason is not None
        ]
        return readable, pa.RecordBatch.from_pylist(rejects, schema=REJECT_SCHEMA)

    def _identified(self, row: dict[str, Any]) -> dict[str, Any]:
        given = [
            _text(header["value"])
            for header in row["kafka_headers"]
            if header["name"] == self._id_header and header["value"]
        ]
        return {**row, KEY: given[-1]} if given and given[-1] else row

    def _key(self, message: Message) -> tuple[str | bytes | None, str | None]:
        key = message.key()
        if not self._key_is_text or not isinstance(key, bytes):
            return key, None
        text = _text(key)
        return text, None if text is not None else "the key is not UTF-8; read such keys with key='bytes'"

    def _values(self, messages: Sequence[Message]) -> tuple[list[pa.Array], list[str | None]]:
        values = [_bytes(message) for message in messages]
        none: list[str | None] = ["no value (a tombstone: its key was deleted)" if v is None else None for v in values]
        if self._reader is None:
            return [pa.array(values, pa.binary())], none
        texts = [None if value is None else _text(value) for value in values]
        undecoded = [
            reason or ("the value is not UTF-8" if text is None else None)
            for reason, text in zip(none, texts, strict=True)
        ]
        reading = self._reader.read(texts, [])
        reasons = [reason or other for reason, other in zip(undecoded, reading.reasons, strict=True)]
        return [column.combine_chunks() for column in reading.columns.columns], reasons


def lost_rows(topic: str, lost: Sequence[OffsetRange]) -> pa.RecordBatch:
    """Return one row for each range that is gone."""
    rows = [
        {
            KEY: f"{message_id(topic, offsets.partition, offsets.start)}..{offsets.end - 1}",
            "kafka_partition": offsets.partition,
            "kafka_offset": offsets.start,
            "offsets": offsets.end - offsets.start,
            "reason": lost_text(topic, offsets),
        }
        for offsets in lost
    ]
    return pa.RecordBatch.from_pylist(rows, schema=REJECT_SCHEMA)


def _where(message: Message) -> dict[str, Any]:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    # a message that was read has a place
    assert topic is not None
    assert partition is not None
    assert offset is not None
    kind, milliseconds = message.timestamp()
    headers: Any = message.headers() or []
    return {
        KEY: message_id(topic, partition, offset),
        "kafka_partition": partition,
        "kafka_offset": offset,
        "kafka_timestamp": milliseconds if kind else None,
        "kafka_headers": [{"name": name, "value": value} for name, value in headers],
    }


def _bytes(message: Message) -> bytes | None:
    value = message.value()
    return value.encode() if isinstance(value, str) else value


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
