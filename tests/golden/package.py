"""The only module here that imports the package: a moved module changes one line here, and nothing else.

`mixed` runs this file of an older commit against the code of that commit.
"""

from dagster_llm_batch import (
    Cascade,
    Embedding,
    Evidence,
    Fallback,
    Gather,
    Limits,
    Near,
    Precision,
    Prompt,
    Realtime,
    Recall,
    Relabel,
    Resend,
    Reuse,
    Rolling,
    Spend,
    Split,
    __version__,
    split_rows,
)
from dagster_llm_batch.core.gather import Gatherer
from dagster_llm_batch.core.row_condition import RowCondition
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import LeaseError, StatusUnknownError, TransientError
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.registry import provider_class
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.records import Judgment
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Absent, BatchReport, BatchStatus, Found
from dagster_llm_batch.upkeep.adopt import Adopter

__all__ = [
    "SERVERS",
    "Absent",
    "Adopter",
    "BatchReport",
    "BatchStatus",
    "Cascade",
    "Database",
    "Deployment",
    "Embedding",
    "Engine",
    "Evidence",
    "Fallback",
    "Found",
    "Gather",
    "Gatherer",
    "Judgment",
    "Labeling",
    "LeaseError",
    "Ledger",
    "Limits",
    "Near",
    "PayloadStore",
    "Precision",
    "Prompt",
    "RayAnswers",
    "Realtime",
    "Recall",
    "Relabel",
    "Resend",
    "Reuse",
    "Rolling",
    "RowCondition",
    "Spend",
    "Split",
    "StatusUnknownError",
    "TransientError",
    "__version__",
    "provider_class",
    "split_rows",
]
