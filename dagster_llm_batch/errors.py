"""Everything this package raises, as one tree. The type says whose fault it is and whether trying again can help.

    LLMBatchError
    ├── ConfigError               the definition is wrong; nothing was sent
    │   ├── MissingExtraError     an optional dependency is not installed
    │   ├── ResponseSchemaError   a provider cannot take this response schema
    │   ├── DefinitionChangedError  … since rows were submitted: what was answered cannot land by it
    │   └── BudgetError           the estimate exceeds what may be spent; nothing was sent
    ├── InputError                the rows are wrong; nothing was sent
    │   ├── MessagesLostError     … since a stream's retention has deleted some before they were read
    │   └── MissingGoldError      … since people have not said what is right of some that were drawn
    ├── ProviderError             the provider said no
    │   ├── TransientError        … for now: the same call may succeed later
    │   │   ├── NoConnectionError … and this one never left
    │   │   └── NoRoomError       … since its queue has no room for this batch
    │   ├── RefusedError          … for good: the same call will fail again
    │   │   ├── CredentialsError  … because of who asked
    │   │   └── CannotStopError   … since there is no way to stop a batch there
    │   └── AmbiguousError        … or perhaps yes: a create call ended without a reply that can be trusted
    ├── CannotTellError           a paid batch may or may not exist; a person decides, nothing is paid again
    ├── PayloadError              a file could not be stored; an older one of its name is as it was
    └── LedgerError               the ledger refuses; nothing was changed
        ├── IllegalMoveError      the shard is not in a state that allows this
        └── LeaseError            another process works on it

A message says what happened, what was got, what is allowed and what to do next. Messages never hold credentials.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AmbiguousError",
    "BudgetError",
    "CannotStopError",
    "CannotTellError",
    "ConfigError",
    "CredentialsError",
    "DefinitionChangedError",
    "IllegalMoveError",
    "InputError",
    "LLMBatchError",
    "LeaseError",
    "LedgerError",
    "MessagesLostError",
    "MissingExtraError",
    "MissingGoldError",
    "NoConnectionError",
    "NoRoomError",
    "PayloadError",
    "ProviderError",
    "RefusedError",
    "ResponseSchemaError",
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
    """The definition is another one than rows were submitted by, and nothing can land by it. Nothing is lost."""


class BudgetError(ConfigError):
    """The estimated cost exceeds the limit. Nothing was sent."""


class InputError(LLMBatchError):
    """The rows cannot be labeled as they are. Nothing was sent."""


class NoRowsError(InputError):
    """The rows are not there yet: what they are read from is not materialized. Nothing was sent."""


class MessagesLostError(InputError):
    """Messages of a window were deleted by retention before they were read. Nothing was read or sent of it."""


class MissingGoldError(InputError):
    """People have said nothing of some rows that a promise against gold is to rest on. Nothing was sent.

    `keys` are those of the rows.
    """

    def __init__(self, message: str, keys: Iterable[object] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class ProviderError(LLMBatchError):
    """A provider call failed."""


class TransientError(ProviderError):
    """The same call may succeed later (429, 5xx, connection). `retry_after_seconds` is the provider's wish, if any.

    `answer` is what a call in real time was answered all the same: its raw result line.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None, answer: bytes | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.answer = answer


class NoConnectionError(TransientError):
    """No connection was made, so the call certainly had no effect."""


class NoRoomError(TransientError):
    """The provider's queue has no room for this batch now; no batch was made.

    `smaller_helps`: whether one of fewer requests may pass. False where batches are counted, None where nobody knows.
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


class CannotTellError(LLMBatchError):
    """Nobody can say whether a paid batch exists. Nothing is sent again until a person resolves it."""


class PayloadError(LLMBatchError):
    """A file could not be stored, as on a full disk, and an older one of its name is as it was; or it is damaged."""


class LedgerError(LLMBatchError):
    """The ledger refused; nothing was changed."""


class IllegalMoveError(LedgerError):
    """The shard is not in a state from which this move is allowed."""


class LeaseError(LedgerError):
    """Another process holds the lease of this shard or submission."""
