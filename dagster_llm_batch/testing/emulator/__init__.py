"""Emulated LLM batch providers: the vendors' wire protocols on loopback, for the vendors' own SDKs.

Each vendor's routes and shapes are a second reading of its documents, and share no code with this package's providers.
The answers are simulated. Batches move by tick or by clock, never because a client reads them; faults are scripted; the
books record calls, batches and bills. Needs the extra `emulator`.
"""

from dagster_llm_batch.testing.emulator.answers import AnswerFunction, Reply, simulated_answer
from dagster_llm_batch.testing.emulator.books import (
    BatchRecord,
    Books,
    Call,
    Execution,
    FileRecord,
    MoveRecord,
    Tokens,
    body_digest,
)
from dagster_llm_batch.testing.emulator.caching import PromptCache
from dagster_llm_batch.testing.emulator.faults import (
    BatchFault,
    Fault,
    FileFault,
    RowFault,
    WireFault,
    lost_create_reply,
    rate_limited,
)
from dagster_llm_batch.testing.emulator.flex import FlexScript
from dagster_llm_batch.testing.emulator.gcs import local_gcs
from dagster_llm_batch.testing.emulator.lifecycle import IllegalTransitionError, Lifecycle, ManualClock
from dagster_llm_batch.testing.emulator.s3 import local_s3
from dagster_llm_batch.testing.emulator.server import DEFAULT_KEY, Emulator
from dagster_llm_batch.testing.emulator.shared_state import VendorLimits
from dagster_llm_batch.testing.emulator.vendors import VENDORS, routes_class

__all__ = [
    "DEFAULT_KEY",
    "VENDORS",
    "AnswerFunction",
    "BatchFault",
    "BatchRecord",
    "Books",
    "Call",
    "Emulator",
    "Execution",
    "Fault",
    "FileFault",
    "FileRecord",
    "FlexScript",
    "IllegalTransitionError",
    "ManualClock",
    "MoveRecord",
    "PromptCache",
    "Reply",
    "RowFault",
    "Tokens",
    "VendorLimits",
    "WireFault",
    "body_digest",
    "local_gcs",
    "local_s3",
    "lost_create_reply",
    "rate_limited",
    "simulated_answer",
]


def __getattr__(name: str) -> Lifecycle:
    """Return the states of a vendor's batches, under the vendor's name in capitals, such as OPENAI."""
    if name.lower() in VENDORS and name.isupper():
        return routes_class(name.lower()).lifecycle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
