"""Adoption of a batch that was sent elsewhere: its answers become answers to a partition's rows, without a new request.

    rows ─▶ requests ─┐
    request file ─────┴─▶ equal bodies ─▶ the batch's result lines, under our custom_ids ─▶ ledger ─▶ collect, land

1. A request gets an answer only if the request file has a line with an equal body, as JSON. Ids are not compared: the
   file has the sender's own ids.
2. The submission has all rows of the partition. Rows without an answer are rejects, and wait for a person's `retry`,
   which shows the price first (`Cause.ADOPTED`).
3. Result lines are stored before the batch is in the ledger. The submission and its shards are then added at once, as
   ended: a planned shard, which could be sent, never exists.
4. The submission's id is derived from the batch's id. Of two adoptions at once, one waits, and the next call overwrites
   the files of a killed process.
5. The batch's files at the provider are not ours (`ownership.py`). They stay, also if rows are erased.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.core.identity import canonical_json, custom_id
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import ConfigError, InputError, TransientError
from dagster_llm_batch.files.request_files import RAW, beside, requests_of
from dagster_llm_batch.files.request_writer import Drafted
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.knowledge import Knowledge
from dagster_llm_batch.loop.plan import PLAN_WAIT_SECONDS, Plan, Planning, RowsState, new_submission, plan_lease, tune
from dagster_llm_batch.loop.planner import check_definition
from dagster_llm_batch.loop.submission_writer import SubmissionWriter
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.batch_rows import batch_key
from dagster_llm_batch.storage.ledger.events import Adopted
from dagster_llm_batch.storage.ledger.records import Batch, Shard, Submission, SubmissionState
from dagster_llm_batch.types import BatchReport, BatchStatus, Cause, Lane

__all__ = ["Adopter", "Adoption"]

# The fields of vendors' lines with the sender's id, and with the request itself.
_IDS = ("custom_id", "key", "recordId")
_BODIES = ("body", "params", "request", "modelInput")
_SHOWN_CHARS = 200


@dataclass(frozen=True)
class Adoption:
    """A batch's answers for a partition. The ledger does not have them before `Adopter.store`.

    Attributes:
        submission, shards: The records to store.
        report: The provider's report of the batch.
        requests: The number of different requests of the partition's rows.
        matched: The number of requests with an equal body in the request file.
        answered: The number of matched requests with a result line.
        lines: The number of lines of the request file.
        unused: The number of lines whose body is not a request of these rows.
    """

    submission: Submission
    shards: tuple[Shard, ...]
    report: BatchReport
    requests: int
    matched: int
    answered: int
    lines: int
    unused: int


class Adopter:
    """Adopt batches for one labeling."""

    def __init__(self, labeling: Labeling, deployment: Deployment) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._ledger = deployment.ledger
        self._payloads = deployment.payloads

    @contextmanager
    def look(self, rows: Any, *, partition: str, batch_id: str, request_file: Path) -> Iterator[Adoption]:
        """Read a batch's answers for a partition's rows. Without `store` within the block, its files are removed.

        Raises ConfigError or InputError if the batch cannot be adopted: it is ours or was adopted, it has failed, it is
        of another account, model or request file, or the partition is under way.
        Raises TransientError while the batch runs, LeaseError while another process adopts it.
        """
        provider = self._deployment.provider(self._labeling.provider)
        if self._labeling.cascade is not None:
            raise ConfigError(
                f"'{self._labeling.asset}' is a cascade, which draws its own samples for its oracle: "
                "a batch that was sent elsewhere cannot replace them. Nothing was changed. Adopt it for an asset of "
                "that model alone."
            )
        if self._labeling.audited is not None:
            kind = "relabel" if self._labeling.near is None else "near"
            raise ConfigError(
                f"'{self._labeling.asset}' has Resend(reuse=Reuse({kind}=…)), which draws its own audit: a batch that "
                f"was sent elsewhere cannot replace it. Nothing was changed. Leave {kind} out until the batch is "
                "adopted; its answers are reused afterwards."
            )
        if self._labeling.prompt.documents_as == "upload":
            raise ConfigError(
                f"'{self._labeling.asset}' uploads its documents, by Prompt(documents_as='upload'): requests that "
                "were sent elsewhere name files by other ids, so it is unknown which rows they are for. Nothing was "
                "changed. Label the rows here. With documents_as='file', batches with documents inside are adopted."
            )
        check_definition(self._deployment, self._labeling, is_sent=True)
        writer = SubmissionWriter(self._labeling, self._deployment)
        content = f"{self._deployment.namespace}\0{provider.name}\0{provider.account}\0{batch_id}"
        submission_id = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        # Two adoptions at once would write the same files, and one would remove the other's.
        with self._deployment.leased(submission_id), ExitStack() as unwanted:
            self._refuse_known(provider, batch_id)
            history = self._ledger.submissions.of_partition(self._deployment.namespace, self._labeling.asset, partition)
            _refuse_under_way(history)
            report = self._ended(provider, batch_id)
            senders = self._sender_ids(request_file, report)
            erased = self._deployment.erased_keys(partition, self._labeling.asset)
            draft = writer.draft(submission_id, partition, None, erased)
            unwanted.callback(draft.discard)
            draft.add_rows(rows)
            drafted = draft.finish(writer.configuration)
            for shard in drafted.shards:
                unwanted.callback(self._payloads.delete, beside(shard, RAW))
            names = self._names(drafted, senders, request_file)
            answered = self._store_lines(drafted, provider, batch_id, names)
            now = self._deployment.clock()
            knowledge = Knowledge(history, (), None, erased, None, again=False, read_at=now)
            planning = Planning(
                self._labeling, self._deployment, partition, submission_id, knowledge, writer, None, unwanted
            )
            plan = tune(Plan(RowsState.NEW, drafted, draft.estimate), planning)
            base = new_submission(plan, planning, None)
            # The newest submission's labels are materialized, so it must be newer than one by a clock that was ahead.
            later = [one.created_at + timedelta(microseconds=1) for one in history]
            submission = replace(base, created_at=max([now, *later]))
            _refuse_asked(history, submission)
            adoption = Adoption(
                submission=submission,
                shards=tuple(_as_ended(drafted.shards, batch_id, report, submission)),
                report=report,
                requests=drafted.requests,
                matched=len(set(names.values())),
                answered=answered,
                lines=sum(map(len, senders.values())),
                unused=sum(len(ids) for ids in senders.values()) - len(names),
            )
            try:
                yield adoption
            finally:
                if self._ledger.submissions.find_known([submission_id]):
                    unwanted.pop_all()

    def store(self, adoption: Adoption) -> Submission:
        """Add the batch to the ledger. The next collection completes its submission, and its labels are materialized.

        Raises ConfigError if a run planned the partition since `look`, for example while a person was asked.
        """
        submission = adoption.submission
        place = (submission.namespace, submission.asset, submission.partition)
        with self._ledger.leases.hold(plan_lease(*place), wait_seconds=PLAN_WAIT_SECONDS):
            history = self._ledger.submissions.of_partition(*place)
            _refuse_under_way(history)
            _refuse_asked(history, submission)
            sent = {shard.shard_id: (shard, 1) for shard in adoption.shards}
            self._ledger.shards.recover_sends([submission], sent, Adopted)
        return self._ledger.submissions.get(submission.submission_id)

    def _refuse_known(self, provider: Provider, batch_id: str) -> None:
        shard = self._ledger.uploads.find_batch(provider.name, provider.account, batch_id)
        if shard is None:
            return
        submission = self._ledger.submissions.get(shard.submission_id)
        what = f"submission {submission.submission_id} of {submission.place}"
        if shard.cause is Cause.ADOPTED:
            raise ConfigError(f"Batch {batch_id} was adopted already, as {what}. Nothing was changed.")
        raise ConfigError(
            f"Batch {batch_id} is one of our own, of {what}: it was sent from here, and its labels go there. Nothing "
            "was changed."
        )

    def _ended(self, provider: Provider, batch_id: str) -> BatchReport:
        report = provider.poll([batch_id]).get(batch_id)
        if report is None:
            raise TransientError(f"Batch {batch_id} could not be read now. Nothing was changed. Try again.")
        if report.status is BatchStatus.NOT_FOUND:
            raise ConfigError(
                f"The account {hide_secrets(provider.account)} of '{provider.name}' has no batch {batch_id}: it is "
                "another account's, or its id is wrong. Nothing was changed. Name the provider of its account in the "
                f"asset's model. ({report.reason or 'no reason given'})"
            )
        if not report.status.is_terminal:
            raise TransientError(
                f"Batch {batch_id} is still '{report.status.value}'. Nothing was changed. Adopt it when it has ended."
            )
        if report.status is BatchStatus.FAILED:
            raise ConfigError(
                f"Batch {batch_id} failed as a whole, so it has no answers to adopt: {report.reason} "
                "Nothing was changed."
            )
        return report

    def _sender_ids(self, request_file: Path, report: BatchReport) -> dict[bytes, list[str]]:
        """Return the sender's ids of the request file's lines, by digests of their bodies."""
        senders: dict[bytes, list[str]] = {}
        for number, line in enumerate(_lines(request_file), start=1):
            sender, body = _id_and_body(line)
            if body is None:
                raise InputError(
                    f"Line {number} of {request_file} is not a request: it must have one of the fields "
                    f"{', '.join(_BODIES)}. Give the file that was uploaded, or, for Anthropic, the requests of the "
                    "create call. Nothing was changed."
                )
            told, asked = report.model, self._labeling.spec.model
            if "model" not in body and told is not None and not _is_model(told, asked):
                raise ConfigError(
                    f"The batch asked the model {told!r}; '{self._labeling.asset}' asks {asked!r}. Nothing was changed."
                    " Adopt it for an asset of that model."
                )
            senders.setdefault(_digest(body), []).append(sender or f"line {number}")
        if not senders:
            raise InputError(f"{request_file} has no requests. Nothing was changed. Give the file that was uploaded.")
        lines = sum(map(len, senders.values()))
        if report.status is BatchStatus.ENDED and report.total is not None and report.total != lines:
            raise InputError(
                f"{request_file} has {lines:,} requests, batch {report.batch_id} has {report.total:,}: it is another "
                "batch's file. Nothing was changed. Give the file of this batch."
            )
        # Some vendors take an id twice, and then it is unknown which of the two requests was answered.
        bodies = Counter(sender for ids in senders.values() for sender in set(ids))
        return {body: [one for one in ids if bodies[one] == 1] for body, ids in senders.items()}

    def _names(self, drafted: Drafted, senders: Mapping[bytes, list[str]], request_file: Path) -> dict[str, str]:
        """Return our custom_ids by the sender's, for requests whose bodies are equal. Raises InputError without any."""
        names: dict[str, str] = {}
        example = None
        for shard in drafted.shards:
            for request_id, line in requests_of(self._payloads, shard.path, shard.nonce):
                _, body = _id_and_body(json.loads(line))
                example = example or body
                for sender in senders.get(_digest(body or {}), ()):
                    names[sender] = custom_id(shard.nonce, request_id)
        if not names:
            theirs = _id_and_body(next(_lines(request_file)))[1]
            raise InputError(
                f"All lines of {request_file} differ from the requests of these rows, so its answers are for other "
                f"rows. Nothing was changed. Here a request is {_shown(example)}; there the first is {_shown(theirs)}. "
                "Give the asset the prompt, parameters and response that the batch was sent with, or give the file of "
                "this batch."
            )
        return names

    def _store_lines(self, drafted: Drafted, provider: Provider, batch_id: str, names: Mapping[str, str]) -> int:
        """Store the batch's result lines under our custom_ids; return the number of answered requests."""
        codec = self._deployment.codec(self._labeling)
        answered: set[str] = set()
        with ExitStack() as files:
            raw = {
                shard.nonce: files.enter_context(self._payloads.writer(beside(shard, RAW))) for shard in drafted.shards
            }
            for line in provider.fetch(batch_id):
                sender = codec.decode(line).custom_id
                own = names.get(sender or "")
                if own is not None and own not in answered:
                    answered.add(own)
                    raw[own.partition("-")[0]].write(_renamed(line, own))
        if not answered:
            raise InputError(
                f"The results of batch {batch_id} have other ids than the request file: it is another batch's file. "
                "Nothing was changed. Give the file of this batch."
            )
        return len(answered)


def _refuse_under_way(history: Iterable[Submission]) -> None:
    for one in history:
        if one.state is SubmissionState.OPEN:
            raise ConfigError(
                f"{one.place} is under way, as submission {one.submission_id}: it would have two answers to a row. "
                "Nothing was changed. Wait until its labels are materialized, or `cancel` it first."
            )


def _refuse_asked(history: Iterable[Submission], submission: Submission) -> None:
    for one in history:
        if one.fingerprint == submission.fingerprint and one.state is not SubmissionState.CANCELED:
            raise ConfigError(
                f"These rows were asked already, as submission {one.submission_id}, and their answers are here. "
                "Nothing was changed. To ask again for rows that have no label, see `retry`."
            )
        if one.created_at >= submission.created_at:
            raise ConfigError(
                f"{one.place} was planned meanwhile, as submission {one.submission_id}: its labels would come from "
                "there, not from this batch. Nothing was changed. Look at that submission first."
            )


def _as_ended(shards: Iterable[Shard], batch_id: str, report: BatchReport, submission: Submission) -> Iterator[Shard]:
    """Yield planned shards as shards of an ended batch."""
    key: str | None = None
    sent_at = min(report.created_at or submission.created_at, submission.created_at)
    for place, shard in enumerate(shards):
        key = key or batch_key(shard, 1)
        yield replace(
            shard,
            provider=submission.provider,
            account=submission.account,
            model=submission.model,
            lane=Lane.BATCH,
            state=ShardState.ENDED,
            batch=Batch(
                batch_key=key,
                place=place,
                batch_id=batch_id,
                sent_at=sent_at,
                submitted_at=sent_at,
                status=report.status,
            ),
            sends=1,
            ended_at=min(report.ended_at or submission.created_at, submission.created_at),
            cause=Cause.ADOPTED,
        )


def _lines(request_file: Path) -> Iterator[dict[str, Any]]:
    """Yield the requests of a file: JSON lines, or one JSON object or list with all of them. Raises InputError."""
    try:
        with request_file.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError:
                    if number > 1:
                        raise
                    # A file of more than one line may be the body of a create call.
                    value = json.loads(line + file.read())
                yield from _requests_in(value)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The request file {request_file} cannot be read: {error}. Nothing was changed.") from None


def _requests_in(value: Any) -> Iterator[dict[str, Any]]:
    given = value.get("requests", [value]) if isinstance(value, dict) else value
    for one in given if isinstance(given, list) else [given]:
        yield one if isinstance(one, dict) else {}


def _id_and_body(line: Mapping[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    sender = next((line[name] for name in _IDS if isinstance(line.get(name), str)), None)
    if sender is None and isinstance(metadata := line.get("metadata"), dict) and isinstance(metadata.get("key"), str):
        sender = metadata["key"]
    return sender, next((line[name] for name in _BODIES if isinstance(line.get(name), dict)), None)


def _renamed(line: bytes, own: str) -> bytes:
    """Return a result line with our custom_id instead of the sender's."""
    row = json.loads(line)
    for name in _IDS:
        if name in row:
            row[name] = own
    if isinstance(row.get("metadata"), dict) and "key" in row["metadata"]:
        row["metadata"]["key"] = own
    return json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n"


def _digest(body: Mapping[str, Any]) -> bytes:
    return hashlib.blake2b(canonical_json(body).encode(), digest_size=16).digest()


def _is_model(told: str, asked: str) -> bool:
    """Return whether a provider's name of a model, which may be a path or an ARN, means the labeling's model."""
    return told == asked or told.endswith(f"/{asked}") or asked.endswith(f"/{told}")


def _shown(body: Mapping[str, Any] | None) -> str:
    # Only names of fields: their values may be other people's rows.
    fields = {name: type(value).__name__ for name, value in sorted((body or {}).items())}
    return json.dumps(fields)[:_SHOWN_CHARS]
