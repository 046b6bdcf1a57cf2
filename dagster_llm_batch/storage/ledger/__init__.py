"""The ledger: submissions, shards, events and leases on SQLite or PostgreSQL.

`Ledger` loads SQLAlchemy, so it is imported on first use: a code location that is only read does without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_llm_batch.storage.ledger.ledger import Ledger

__all__ = ["Ledger"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.ledger"), name)
