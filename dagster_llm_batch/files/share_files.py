"""The file of a submission's near copies, and of the decision on them. Only labelings with `Reuse(near=…)` need it."""

from __future__ import annotations

import pyarrow as pa

from dagster_llm_batch.core.shares import PAIRS, Shares
from dagster_llm_batch.files.shard_files import SHARES
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.stored_files import DamagedError, LostError

__all__ = ["shares_of", "store_shares"]

# The key of the settings in the metadata of the table.
_SETTINGS = "llm_batch.near"


def store_shares(payloads: PayloadStore, folder: str, shares: Shares) -> None:
    """Write the near copies of a submission into its folder."""
    with payloads.table_writer(f"{folder}/{SHARES}", PAIRS) as out:
        out.write_table(shares.pairs.cast(PAIRS))
        out.add_key_value_metadata({_SETTINGS: shares.settings_json()})


def shares_of(payloads: PayloadStore, submission: Submission) -> Shares | None:
    """Return the near copies of a submission; None without the file, or if it is damaged."""
    path = f"{submission.folder}/{SHARES}"
    if not submission.folder or not payloads.exists(path):
        return None
    # Code that needs it reports the next step.
    try:
        stored = payloads.table_metadata(path)[_SETTINGS.encode()].decode()
        return Shares.of_json(stored, payloads.read_table(path).replace_schema_metadata().cast(PAIRS))
    except (LostError, DamagedError, pa.ArrowException):
        return None
