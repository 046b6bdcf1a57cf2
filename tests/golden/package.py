"""The only module here that imports the package: a moved module changes one line here, and nothing else.

`mixed` runs this file of an older commit against the code of that commit.
"""

from dagster_llm_batch import (
    Cascade,
    Embedding,
    Fallback,
    Limits,
    Prompt,
    Realtime,
    Resend,
    Rolling,
    Spend,
    __version__,
)
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import CannotTellError, LeaseError, TransientError
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.registry import provider_class
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.records import Judgment
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Absent, BatchReport, BatchStatus, Found
from dagster_llm_batch.upkeep.adopt import Adopter

__all__ = [
    "Absent",
    "Adopter",
    "BatchReport",
    "BatchStatus",
    "CannotTellError",
    "Cascade",
    "Database",
    "Deployment",
    "Embedding",
    "Engine",
    "Fallback",
    "Found",
    "Judgment",
    "Labeling",
    "LeaseError",
    "Ledger",
    "Limits",
    "PayloadStore",
    "Prompt",
    "RayAnswers",
    "Realtime",
    "Resend",
    "Rolling",
    "Spend",
    "TransientError",
    "__version__",
    "provider_class",
]
