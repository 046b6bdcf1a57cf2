"""The only module that imports Kafka's client (confluent-kafka, over librdkafka); it makes the client's errors ours."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.errors import ConfigError, CredentialsError, LLMBatchError, MissingExtraError, TransientError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer

__all__ = ["Connection", "as_ours", "confluent", "is_end", "kafka_errors"]

_CREDENTIALS = (
    "_AUTHENTICATION",
    "SASL_AUTHENTICATION_FAILED",
    "TOPIC_AUTHORIZATION_FAILED",
    "GROUP_AUTHORIZATION_FAILED",
    "CLUSTER_AUTHORIZATION_FAILED",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
    "ILLEGAL_SASL_STATE",
)
_UNKNOWN = ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "TOPIC_EXCEPTION")
# Emergencies only: other errors come back as an error, and the client would also print them to stderr.
_QUIET = 0


def confluent() -> Any:
    """Return the module `confluent_kafka`. Raises MissingExtraError."""
    try:
        import confluent_kafka  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise MissingExtraError("kafka", "Kafka") from error
    return confluent_kafka


@contextmanager
def kafka_errors(doing: str) -> Iterator[None]:
    """Turn the client's errors into ours: a TransientError if it may pass, else an error with the setting to change."""
    try:
        yield
    except confluent().KafkaException as error:
        raise as_ours(error.args[0], doing) from error


def as_ours(error: Any, doing: str) -> LLMBatchError:
    """Return one of the client's errors, by its name."""
    message = f"{doing}: Kafka says {error.name()}: {error.str()}."
    if error.name() in _CREDENTIALS:
        return CredentialsError(f"{message} The broker does not accept who asks, or does not allow it.")
    if error.name() in _UNKNOWN:
        return ConfigError(f"{message} Is the topic's name right, and does the broker have it?")
    if error.name() == "MSG_SIZE_TOO_LARGE":
        return ConfigError(
            f"{message} Raise max.message.bytes of that topic: some hundred bytes over the longest message sent on to "
            "it."
        )
    if error.name() == "_INVALID_ARG":
        return ConfigError(f"{message} Correct the settings of KafkaResource: its client does not support one of them.")
    if error.name() in ("_FENCED", "INVALID_PRODUCER_EPOCH", "FENCED_INSTANCE_ID"):
        return TransientError(f"{message} Another process produces the same partition now; this one has stopped.")
    return TransientError(f"{message} Nothing was lost; the same can be tried again.")


def is_end(error: Any) -> bool:
    """Return whether the message only marks the present end of a partition."""
    return bool(error.code() == confluent().KafkaError._PARTITION_EOF)  # noqa: SLF001 - the client's own names


class Connection:
    """Makes clients of one cluster. `settings` are librdkafka's, and may hold secrets: they are never shown."""

    def __init__(self, settings: Mapping[str, Any], timeout_seconds: float) -> None:
        self._settings = dict(settings)
        self.timeout_seconds = timeout_seconds

    @property
    def _usual(self) -> dict[str, Any]:
        return {"log_level": _QUIET, "socket.timeout.ms": int(self.timeout_seconds * 1000)}

    def __repr__(self) -> str:
        return f"Connection({self._settings.get('bootstrap.servers')!r})"

    def consumer(self, **more: Any) -> Consumer:
        """Return a consumer that sees committed messages only, never commits on a timer, and never skips an offset.

        It is its own group unless `group_id` names one. More settings with _ for the dots.
        """
        settings = {
            # The client requires a group even for a consumer that never joins one or commits.
            "group.id": f"dagster-llm-batch-{uuid.uuid4().hex}",
            # Offsets are committed with the produced messages, in one transaction; a timer would commit unfinished
            # work.
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            # Messages that retention has deleted must be noticed, and not jumped over.
            "auto.offset.reset": "error",
            "queued.max.messages.kbytes": 16_384,
            # Longest wait of a group for a member that was killed. The default of 45 s would stop its partitions for as
            # long.
            "session.timeout.ms": 10_000,
            "heartbeat.interval.ms": 1_000,
            **self._usual,
            **self._settings,
            **_dotted(more),
        }
        with kafka_errors("Making a consumer"):
            consumer: Consumer = confluent().Consumer(settings)
        return consumer

    def producer(self, **more: Any) -> Producer:
        """Return an idempotent producer."""
        settings = {
            "enable.idempotence": True,
            "linger.ms": 5,
            # topics have their own limits
            "message.max.bytes": 100_000_000,
            **self._usual,
            **self._settings,
            **_dotted(more),
        }
        with kafka_errors("Making a producer"):
            producer: Producer = confluent().Producer(settings)
        return producer


def _dotted(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in given.items()}
