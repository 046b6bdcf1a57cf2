"""A topic as a source of rows: how its messages are read, and its windows as Dagster partitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.assets.rows_context import RowsContext, RowsFunction
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.streams.client import Connection
from dagster_llm_batch.streams.consumer import WindowReader
from dagster_llm_batch.streams.messages import Content, lost_rows
from dagster_llm_batch.streams.resource import kafka_of
from dagster_llm_batch.streams.results import SOURCE
from dagster_llm_batch.streams.windows import KafkaWindow, check_topic

__all__ = ["KafkaTopic"]

OnLost = Literal["stop", "record"]


@checked
@dataclass(frozen=True)
class KafkaTopic:
    """A topic whose windows are partitions; `build_kafka_sensor` makes the windows.

    Args:
        name: The topic's name.
        message: The content of a message: a pydantic model or a JSON Schema (one column a field), None for UTF-8 text
            (column `text`) or `bytes` (column `value`). A message that does not fit is a reject, with the reason.
        key: The type of the messages' keys in the column `kafka_key`: UTF-8 text or bytes.
        on_lost: The reaction to messages that retention deleted before they were read: "stop" (MessagesLostError,
            nothing of the window is used) or "record" (the remaining messages are used, and the lost offsets are among
            the rejects).
        partitions_name: Name of the dynamic partitions. Give another one for a topic that was created again under its
            old name.
        resource_key: The key of the KafkaResource.
        id_header: A header with the message's id, for a topic of messages that came from another one; else its own
            place is its id.
    """

    name: str
    message: Any = None
    key: Literal["text", "bytes"] = "text"
    on_lost: OnLost = "stop"
    partitions_name: str | None = None
    resource_key: str = "kafka"
    id_header: str | None = None

    def __post_init__(self) -> None:
        check_topic(self.name)
        # refuse unreadable content now
        _ = self.content

    @cached_property
    def content(self) -> Content:
        return Content(self.message, self.key, self.id_header)

    @cached_property
    def partitions_def(self) -> dg.DynamicPartitionsDefinition:
        """One partition for each window."""
        return dg.DynamicPartitionsDefinition(name=self.partitions_name or f"kafka_{self.name}")

    def sent_on_to(self, name: str) -> KafkaTopic:
        """Return the topic to which StreamLabeler sends on messages of this one: they keep the ids that they have
        here.
        """
        return replace(self, name=name, partitions_name=None, id_header=SOURCE)

    def window(self, partition_key: str | None) -> KafkaWindow:
        """Return the window of a partition. Raises InputError for a key of another topic."""
        window = KafkaWindow.parse(partition_key or "")
        if window.topic != self.name:
            raise InputError(f"The window {partition_key!r} is of topic '{window.topic}', not of '{self.name}'.")
        return window

    def read(self, connection: Connection, window: KafkaWindow) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Yield all messages of a window, each once, as pairs of readable rows and rejects. The first pair is empty."""
        reader = WindowReader(connection, window, stops_when_lost=self.on_lost == "stop")
        yield self.content.read([])
        for messages in reader.messages():
            yield self.content.read(messages)
        yield pa.RecordBatch.from_pylist([], schema=self.content.schema), lost_rows(self.name, reader.lost)

    def rows(self, unreadable: Literal["raise", "leave_out"] = "raise") -> RowsFunction:
        """Return the rows for `rows=` of `llm_batch_assets`.

        Use it with `required_resource_keys={"kafka"}` and `key="message_id"`.

        Messages go straight to the prompt, in Arrow batches, and are stored nowhere else. `unreadable` decides about
        messages that do not fit: "leave_out" is for topics with a `kafka_assets`, which keeps them. To keep all
        messages, longer than Kafka does, use such an asset as the rows.
        """

        def read(context: RowsContext) -> Iterator[pa.RecordBatch]:
            window = self.window(context.partition_key)
            left_out = 0
            for readable, rejects in self.read(kafka_of(context.resources, self.resource_key), window):
                if unreadable == "raise" and rejects.num_rows:
                    first = rejects.slice(0, 1).to_pylist()[0]
                    raise InputError(
                        f"{window.key}: message {first['message_id']} cannot be read: {first['reason']}. Nothing was "
                        "sent. Let kafka_assets() keep such messages, with rows(unreadable='leave_out'), or give its "
                        "asset as the rows."
                    )
                left_out += rejects.num_rows
                yield readable
            if left_out:
                context.asset.log.warning(f"{window.key}: {left_out} messages cannot be read and were left out.")

        return read
