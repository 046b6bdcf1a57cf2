"""The files of a submission with an audit: the requests that may share answers, and the decision on them.

Only labelings with `Reuse(near=…)` or `Reuse(relabel=…)` need them.
"""

from __future__ import annotations

from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.relabels import Relabels
from dagster_llm_batch.core.result_schema import REPEATING
from dagster_llm_batch.core.shares import AuditedAnswers, Shares
from dagster_llm_batch.files.shard_files import OLDER, RELABELS, SHARES
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.stored_files import DamagedError, LostError

__all__ = ["audited_of", "conform_older", "forget_shared", "older_path", "relabels_of", "shares_of", "store_shares"]

_ID = "llm_request_id"
_Kind = TypeVar("_Kind", bound=AuditedAnswers)

# By kind, the name of the file, and the key of the settings in the metadata of its table.
_FILES: dict[type[AuditedAnswers], tuple[str, str]] = {
    Shares: (SHARES, "llm_batch.near"),
    Relabels: (RELABELS, "llm_batch.relabel"),
}


def store_shares(payloads: PayloadStore, folder: str, shares: AuditedAnswers) -> None:
    """Write the requests that may share answers into the folder of their submission."""
    name, settings = _FILES[type(shares)]
    with payloads.table_writer(f"{folder}/{name}", shares.schema) as out:
        out.write_table(shares.pairs.cast(shares.schema))
        out.add_key_value_metadata({settings: shares.settings_json()})


def shares_of(payloads: PayloadStore, submission: Submission) -> Shares | None:
    """Return the near copies of a submission; None without the file, or if it is damaged."""
    return _read(payloads, submission, Shares)


def relabels_of(payloads: PayloadStore, submission: Submission) -> Relabels | None:
    """Return the rows of a submission with an older label.

    None without the file, or if it is damaged. None, too, if the labels may still stay and their answers are lost.
    """
    found = _read(payloads, submission, Relabels)
    may_stay = found is not None and not found.asks_all and (found.wrong is None or found.passes)
    return None if may_stay and not payloads.is_whole(older_path(submission)) else found


def audited_of(payloads: PayloadStore, submission: Submission) -> AuditedAnswers | None:
    """Return what an audit decides on in a submission; None without such a file, or if it is damaged."""
    return shares_of(payloads, submission) or relabels_of(payloads, submission)


def _read(payloads: PayloadStore, submission: Submission, kind: type[_Kind]) -> _Kind | None:
    name, settings = _FILES[kind]
    path = f"{submission.folder}/{name}"
    if not submission.folder or not payloads.exists(path):
        return None
    # Code that needs it reports the next step.
    try:
        stored = payloads.table_metadata(path)[settings.encode()].decode()
        return kind.of_json(stored, payloads.read_table(path).replace_schema_metadata().cast(kind.schema))
    except (LostError, DamagedError, pa.ArrowException):
        return None


def older_path(submission: Submission) -> str:
    """Return the path of the older answers that may stay."""
    return f"{submission.folder}/{OLDER}"


def conform_older(payloads: PayloadStore, path: str, schema: pa.Schema) -> None:
    """Write older answers with these columns, if they have others: their raw lines belong to another submission."""
    stored = payloads.read_table(path).replace_schema_metadata()
    if stored.schema.equals(schema):
        return
    columns = [
        stored[field.name].cast(field.type) if field.name in stored.column_names else pa.nulls(len(stored), field.type)
        for field in schema
    ]
    with payloads.table_writer(path, schema, repeating=REPEATING) as out:
        out.write_table(pa.table(columns, schema=schema))


def forget_shared(payloads: PayloadStore, submission: Submission, going: set[str]) -> None:
    """Remove erased requests from the stored decision, and older answers that no other row has."""
    for kind in _FILES:
        if (shares := _read(payloads, submission, kind)) is not None:
            store_shares(payloads, submission.folder, shares.without(going))
    # After the decision, which names the answers: a process that is killed in between does both again.
    if payloads.exists(path := older_path(submission)):
        _forget_answers(payloads, path, _read(payloads, submission, Relabels))


def _forget_answers(payloads: PayloadStore, path: str, left: Relabels | None) -> None:
    """Keep the older answers that the decision names; without it, their rows are unknown, so all are removed."""
    if left is None or not payloads.is_whole(path):
        payloads.delete(path)
        return
    leaders = pc.unique(left.pairs["leader"].combine_chunks()).drop_null()
    schema = payloads.table_schema(path).remove_metadata()
    stored = payloads.read_table(path).replace_schema_metadata()
    with payloads.table_writer(path, schema, repeating=REPEATING) as out:
        out.write_table(stored.filter(pc.is_in(stored[_ID], leaders)))
