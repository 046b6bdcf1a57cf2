"""All errors of this package, as one tree. The type shows the responsible side, and whether trying again can help.

    LLMBatchError
    ├── ConfigError               the definition is wrong; nothing was sent
    │   ├── MissingExtraError     an optional dependency is not installed
    │   ├── ResponseSchemaError   a provider cannot take this response schema
    │   ├── DefinitionChangedError  … for answers: it changed since rows were submitted
    │   └── BudgetError           the estimate exceeds what may be spent; nothing was sent
    ├── InputError                the rows are wrong; nothing was sent
    │   ├── MessagesLostError     … since a stream's retention has deleted some before they were read
    │   └── MissingGoldError      … since some drawn rows lack human labels
    ├── ProviderError             the provider refused
    │   ├── TransientError        … for now: the same call may succeed later
    │   │   ├── NoConnectionError … and the request was not sent
    │   │   └── QueueFullError       … since its queue has too little space for this batch
    │   ├── RefusedError          … for good: the same call will fail again
    │   │   ├── CredentialsError  … because of who asked
    │   │   └── CannotStopError   … since there is no way to stop a batch there
    │   └── AmbiguousError        … or perhaps yes: a create call ended without a reply that can be trusted
    ├── StatusUnknownError           a paid batch may exist; it is sent again only if a person decides so
    ├── PayloadError              a file could not be stored; an older one of its name is unchanged
    └── LedgerError               the ledger refuses; nothing was changed
        ├── IllegalTransitionError      the shard is not in a state that allows this
        └── LeaseError            another process works on it

A message has the event, the received value, the allowed values and the next step. Messages never hold credentials.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AmbiguousError",
    "BudgetError",
    "CannotStopError",
    "ConfigError",
    "CredentialsError",
    "DefinitionChangedError",
    "IllegalTransitionError",
    "InputError",
    "LLMBatchError",
    "LeaseError",
    "LedgerError",
    "MessagesLostError",
    "MissingExtraError",
    "MissingGoldError",
    "NoConnectionError",
    "PayloadError",
    "ProviderError",
    "QueueFullError",
    "RefusedError",
    "ResponseSchemaError",
    "StatusUnknownError",
    "TransientError",
]


class LLMBatchError(Exception):
    """Base of all errors of this package."""


class ConfigError(LLMBatchError):
    """The definition cannot work as written. Raised before anything is sent."""


class MissingExtraError(ConfigError):
    """An optional dependency is needed and not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs an optional dependency. Run: pip install 'dagster-llm-batch[{extra}]'")
        self.extra = extra


class ResponseSchemaError(ConfigError):
    """The provider cannot take this response schema. The message names the construct and its path."""


class DefinitionChangedError(ConfigError):
    """The definition has changed since rows were submitted, and cannot materialize their answers. Nothing is lost."""


class BudgetError(ConfigError):
    """The estimated cost exceeds the limit. Nothing was sent."""


class InputError(LLMBatchError):
    """The rows cannot be labeled as they are. Nothing was sent."""


class NoRowsError(InputError):
    """The rows do not exist yet: their upstream asset is not materialized. Nothing was sent."""


class MessagesLostError(InputError):
    """Retention deleted messages of a window before they were read. Nothing of the window was read or sent."""


class MissingGoldError(InputError):
    """Some rows for a guarantee against gold lack human labels. Nothing was sent.

    `keys` are the keys of these rows.
    """

    def __init__(self, message: str, keys: Iterable[object] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class ProviderError(LLMBatchError):
    """A provider call failed."""


class TransientError(ProviderError):
    """The same call may succeed later (429, 5xx, connection). `retry_after_seconds` is the provider's wish, if any.

    `answer` is the raw result line of a call in real time that was answered nevertheless.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None, answer: bytes | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.answer = answer


class NoConnectionError(TransientError):
    """The connection was not made, so the call certainly had no effect."""


class QueueFullError(TransientError):
    """The provider's queue has too little space for this batch now; it was not created.

    `smaller_helps`: True if a smaller batch may pass, False if the queue counts batches, None if unknown.
    """

    def __init__(
        self, message: str, retry_after_seconds: float | None = None, *, smaller_helps: bool | None = None
    ) -> None:
        super().__init__(message, retry_after_seconds)
        self.smaller_helps = smaller_helps


class UnreadableError(TransientError):
    """The results of a batch that has ended cannot be read now. They are asked for again, with growing pauses."""


class RefusedError(ProviderError):
    """The same call will fail again (4xx). Something has to change first."""


class CredentialsError(RefusedError):
    """The provider does not accept the credentials (401, 403)."""


class CannotStopError(RefusedError):
    """The provider has no call that stops a batch: it runs on to its end. Its answers are kept, and billed."""


class AmbiguousError(ProviderError):
    """A create call ended without a trustworthy reply: the batch may exist. Look for it before creating again."""


class StatusUnknownError(LLMBatchError):
    """It is unknown whether a paid batch exists. It is sent again only after a person resolves it."""


class PayloadError(LLMBatchError):
    """A file could not be stored, for example on a full disk, and an older one of its name is unchanged; or it is
    damaged.
    """


class LedgerError(LLMBatchError):
    """The ledger refused; it was not changed."""


class IllegalTransitionError(LedgerError):
    """The state of the shard does not allow this transition."""


class LeaseError(LedgerError):
    """Another process holds the lease of this shard or submission."""
