"""Receipts of sendings in the payload store, for a ledger that has lost its record of them.

A ledger restored from a backup, or a second one of the same namespace, has no record of the last sendings. It would
send and pay them again. So each shard gets a receipt between the intent and the create call: the shard and its
submission as the ledger has them then. Plans and sends look at the receipts. A sending without a record is in doubt,
and the provider is asked for its batch; mostly the ledger has all of them. A shard that is split gives receipts to its
two halves, since its own files are removed. Calls in real time cannot be looked up at a provider: their stored answers
are used, and the others count as not answered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import PurePosixPath

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from dagster_llm_batch.core.uploads import names_in
from dagster_llm_batch.errors import (
    PayloadError,
)
from dagster_llm_batch.files.ownership import is_receipt
from dagster_llm_batch.files.request_files import SENT, beside, requests_of
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Batch, Bill, Room, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.payloads import namespace_folder, payload_path

__all__ = [
    "Receipt",
    "find_unrecorded",
    "recover_all",
    "recover_partition",
    "recover_planned",
    "write_receipts",
]


@dataclass(frozen=True)
class Receipt:
    """The receipt of a sent shard, or of one of the two halves of a split shard.

    Attributes:
        submission, shard: The records at that time.
        sends: The number of sendings so far.
        batch: The paths of the receipts of all shards in the batch, or of both halves.
    """

    submission: Submission
    shard: Shard
    sends: int
    batch: tuple[str, ...]


# Few processes read receipts, and the adapter takes 10 ms to make. `to_json` writes them without it.
@cache
def _adapter() -> TypeAdapter[Receipt]:
    return TypeAdapter(Receipt)


def write_receipts(deployment: Deployment, sent: Sequence[Shard]) -> None:
    """Store the receipts of shards that are about to be sent in one batch, or were split."""
    batch = tuple(beside(shard, SENT) for shard in sent)
    for shard, path in zip(sent, batch, strict=True):
        submission = deployment.ledger.submissions.get(shard.submission_id)
        # Without the provider's words on an earlier sending: they may quote a row, which may be erased later.
        receipt = Receipt(submission, replace(shard, reason=None, reason_kind=None), shard.sends, batch)
        # Version 0.1.0 reads a flat shard, and finds the batch of one that is not the first in it by the first one.
        plain = from_json(to_json(receipt))
        for part in ("batch", "room", "bill"):
            plain["shard"] |= plain["shard"].pop(part)
        if shard.batch.place and shard.batch.batch_key:
            plain["shard"]["carrier"] = shard.batch.batch_key.rpartition("-")[0]
        with deployment.payloads.writer(path) as out:
            out.write(to_json(plain))


def recover_partition(deployment: Deployment, asset: str, partition: str) -> list[Shard]:
    """Record the sendings of a partition that the ledger has lost; return their shards, which are in doubt now."""
    path = PurePosixPath(payload_path(deployment.namespace, asset, partition, "submission", "name"))
    receipts = _receipts_below(deployment, str(path.parents[1]))
    if not receipts:
        return []
    history = deployment.ledger.submissions.of_partition(deployment.namespace, asset, partition)
    return _recover_sends(deployment, _suspects(deployment, receipts, history))


def recover_all(deployment: Deployment) -> list[Shard]:
    """Record the lost sendings of the whole namespace. Lists all stored files. See `recover_partition`."""
    return _recover_sends(deployment, _all_suspects(deployment))


def find_unrecorded(deployment: Deployment) -> list[Receipt]:
    """Return the receipts of the sendings that `recover_all` would record. Changes nothing."""
    return _find_unrecorded(deployment, _all_suspects(deployment))


def _all_suspects(deployment: Deployment) -> list[str]:
    receipts = _receipts_below(deployment, namespace_folder(deployment.namespace))
    return _suspects(deployment, receipts, deployment.ledger.submissions.list_all(deployment.namespace))


def recover_planned(deployment: Deployment, shards: Sequence[Shard]) -> set[str]:
    """Record the lost sendings of a submission; return the ids of their shards.

    Skip a submission that this process has opened: its sendings are all recorded.
    """
    if shards[0].submission_id in deployment.opened_here:
        return set()
    there = _receipts_below(deployment, shards[0].path.rpartition("/")[0])
    return {shard.shard_id for shard in _recover_sends(deployment, sorted(there - _sent(shards)))}


def _receipts_below(deployment: Deployment, folder: str) -> set[str]:
    return {file.path for file in deployment.payloads.files(folder) if is_receipt(file)}


def _sent(shards: Iterable[Shard]) -> set[str]:
    """Return the receipts of shards that the ledger has as sent."""
    return {beside(shard, SENT) for shard in shards if shard.state is not ShardState.PLANNED}


def _suspects(deployment: Deployment, receipts: Collection[str], history: Iterable[Submission]) -> list[str]:
    """Return the receipts of shards that the ledger may not have as sent."""
    ledger = deployment.ledger
    folders: dict[str, set[str]] = defaultdict(set)
    for path in receipts:
        folders[PurePosixPath(path).parent.name].add(path)
    known = {submission.submission_id: submission for submission in history}
    # The asset may have had another name when they were sent.
    elsewhere = ledger.submissions.find_known(folders.keys() - known.keys())
    suspects: list[str] = []
    for submission_id, paths in folders.items():
        submission = known.get(submission_id)
        if submission is not None and submission.state is SubmissionState.OPEN:
            suspects += sorted(paths - _sent(ledger.shards.of_submission(submission_id)))
        elif submission is None and submission_id not in elsewhere:
            suspects += sorted(paths)
    return suspects


def _recover_sends(deployment: Deployment, suspects: Sequence[str]) -> list[Shard]:
    """Record the batches of these receipts that are missing from the ledger; return their shards."""
    recovered: list[Shard] = []
    # Read first: a shard that was put back, and is sent again, has a receipt and a record.
    while receipts := _find_unrecorded(deployment, suspects):
        shards = {each.shard.shard_id: (each.shard, each.sends) for each in receipts}
        # If the batch of one ran nothing, the others of that batch are planned again, and may have been sent since.
        others = deployment.ledger.shards.sent_beside(shards)
        known = deployment.ledger.shards.recover_sends([receipt.submission for receipt in receipts], shards)
        for shard in known:
            if shard.has_uploads:
                _need_documents(deployment, shard)
        recovered += known
        suspects = [beside(shard, SENT) for shard in others if shard.shard_id not in shards]
    return recovered


def _need_documents(deployment: Deployment, shard: Shard) -> None:
    """Record that the submission of a shard needs its documents: without that, they could be deleted in its batch."""
    payloads, documents = deployment.payloads, deployment.ledger.documents
    # Requests of an older round may have been pruned.
    if not payloads.exists(shard.path):
        return
    names = {name for _, line in requests_of(payloads, shard.path, shard.nonce) for name in names_in(line)}
    uploads = documents.find(deployment.namespace, shard.provider, shard.account, names)
    documents.need({upload.upload_key: [shard.submission_id] for upload in uploads})


def _find_unrecorded(deployment: Deployment, suspects: Sequence[str]) -> list[Receipt]:
    """Return the receipts of the same batches that are missing from the ledger."""
    if not suspects:
        return []
    # A split shard may have its older receipt, too: the receipt with the fewest requests is the newest.
    found = sorted(_read_batches(deployment, suspects), key=lambda receipt: -receipt.shard.requests)
    receipts = {receipt.shard.shard_id: receipt for receipt in found}
    unrecorded = deployment.ledger.shards.find_unrecorded_sends(
        {key: (each.shard, each.sends) for key, each in receipts.items()}
    )
    return [receipts[shard_id] for shard_id in unrecorded]


def _read_batches(deployment: Deployment, suspects: Sequence[str]) -> list[Receipt]:
    """Read these receipts, and the receipts of all shards in the same batches: a batch is recovered as a whole."""
    receipts: dict[str, Receipt] = {}
    waiting = list(suspects)
    while waiting:
        path = waiting.pop()
        # A pruned receipt is of a submission that was settled long ago.
        if path not in receipts and deployment.payloads.exists(path):
            receipts[path] = _read(deployment, path)
            waiting += receipts[path].batch
    return [_with_key(receipt, receipts) for receipt in receipts.values()]


def _with_key(receipt: Receipt, receipts: Mapping[str, Receipt]) -> Receipt:
    """Return the receipt with the key of its batch that the first receipt of that batch has."""
    first = receipts.get(receipt.batch[0]) if receipt.shard.batch.place else None
    if first is None or first.batch != receipt.batch:
        return receipt
    batch = replace(receipt.shard.batch, batch_key=first.shard.batch.batch_key)
    return replace(receipt, shard=replace(receipt.shard, batch=batch))


def _of_today(text: bytes, path: str) -> bytes:
    """Return a receipt with the fields of its batch, its room and its bill in records of their own."""
    try:
        receipt = from_json(text)
    except ValueError:
        return text
    shard = receipt.get("shard") if isinstance(receipt, dict) else None
    if not isinstance(shard, dict):
        return text
    for part, of in (("batch", Batch), ("room", Room), ("bill", Bill)):
        if part not in shard:
            shard[part] = {field.name: shard.pop(field.name) for field in fields(of) if field.name in shard}
    if "carrier" in shard:
        first = shard.pop("carrier") or shard.get("shard_id")
        shard["sends"] = receipt.get("sends")
        if shard.get("state") != ShardState.PLANNED.value:
            batch = receipt.get("batch") or [path]
            shard["batch"]["place"] = batch.index(path) if path in batch else 0
            # Version 0.1.0 has no key. The first one may have been sent more often: see `_read_batches`.
            shard["batch"]["batch_key"] = shard["batch"].get("batch_key") or f"{first}-{shard['sends']}"
    return to_json(receipt)


def _read(deployment: Deployment, path: str) -> Receipt:
    with deployment.payloads.reader(path) as file:
        text = file.read()
    try:
        return _adapter().validate_json(_of_today(text, path))
    except ValidationError as error:
        raise PayloadError(
            f"The receipt {path} cannot be read: {error.error_count()} of its fields are unknown to this version. "
            "Nothing was sent. A newer dagster-llm-batch may have written it: upgrade here."
        ) from None
