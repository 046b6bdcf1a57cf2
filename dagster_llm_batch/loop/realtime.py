"""The real-time lane: one call for each request, several at once, and answers stored like the answers of a batch.

    planned ── commit `submitting` ──▶ a call for each request ──▶ raw file ──▶ commit `ended`

Shards in this lane are small, since a killed process loses the answers of one. A request is asked once in a wave. A
call with an unknown end leaves an empty line, and the next wave asks its request. A run waits for a provider that turns
calls away, within the labeling's patience. Then the answers so far are stored next to the shard, which is planned
again.

With `Realtime(tier="flex")` a request is asked in this tier first. The stored request does not name the tier, so that
the request and its fingerprint are the same in all tiers and in a batch. A request that the vendor turns away there is
asked in the standard tier at once. With `otherwise="batch"` the vendor's refusal is its answer instead, and the next
wave asks the request in a batch. A call without a connection was not turned away: it is repeated in the tier "flex".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, as_completed
from dataclasses import dataclass

from dagster_llm_batch.core.uploads import with_file_ids
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import (
    ConfigError,
    CredentialsError,
    LeaseError,
    LLMBatchError,
    NoConnectionError,
    TransientError,
)
from dagster_llm_batch.files.request_files import RAW, SO_FAR, answers_so_far, beside, write_answers_so_far
from dagster_llm_batch.loop.deployment import Deployment, Threads
from dagster_llm_batch.loop.receipts import write_receipts
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.capabilities import flex_of, real_time_of
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.records import Shard, ShardFields
from dagster_llm_batch.types import BatchStatus, Lane, Outcome

__all__ = ["Answerer"]

# Waits after rejections without a named time.
_PAUSES_SECONDS = (1.0, 4.0, 16.0)


class _TurnedAwayError(Exception):
    """The provider turns calls away for longer than the run waits. This call was not made, or had no effect."""


@dataclass(frozen=True)
class _Calls:
    """The provider's calls for one line.

    `flex` is the call in the tier "flex", if this tier is wanted. With `or_batch`, its refusal is the answer.
    """

    standard: Callable[[bytes], bytes]
    flex: Callable[[bytes], bytes] | None = None
    or_batch: bool = False


class Answerer:
    """Answer shards of one labeling in real time."""

    def __init__(self, labeling: Labeling, deployment: Deployment, lease: Lease) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._lease = lease
        self._codec: Codec = deployment.codec(labeling)
        self._gate = deployment.gate(labeling)

    @property
    def is_turned_away(self) -> bool:
        """True if the patience is used up, so that this process makes no calls now."""
        return self._gate.closed_until is not None

    def answer(self, shard: Shard, file_ids: Mapping[str, str] | None = None) -> None:
        """Bring a planned shard to `ended`, or back to `planned` with the answers so far if some requests are left.

        `file_ids` are the vendor's ids of the documents that its requests name; None: they name none.

        Raises the error that stopped it: CredentialsError, ConfigError or an interruption. Raises LeaseError if this
        process was frozen for longer than its lease, because another process may have continued the shard. If the
        provider turns calls away, the shard waits for the named time, without an error.
        """
        calls = self._calls(shard)
        # Settings may have changed since the shard was planned, also for batches.
        model = f"{shard.provider}/{self._labeling.spec.model}"
        self._deployment.destinations.check(f"Submission {shard.submission_id}", model, self._labeling.spec.params)
        ledger, payloads = self._deployment.ledger, self._deployment.payloads
        lines = list(payloads.lines(shard.path))
        answers = answers_so_far(payloads, shard)
        before = len(answers)
        if file_ids is not None:
            # The documents of answered requests may be gone.
            lines = [line if at in answers else with_file_ids(line, file_ids) for at, line in enumerate(lines)]
        # Committed before the first call. If the process dies after this, the calls must not be repeated.
        sent = ledger.shards.move(shard.shard_id, Transition.SEND, lane=Lane.REALTIME, sent_at=self._deployment.clock())
        stopped_by: BaseException | None
        try:
            # The lease also protects the receipt of another process's sending.
            self._lease.check()
            write_receipts(self._deployment, [sent])
        # Calls were not made. The requests are asked later, and do not count as asked.
        except BaseException as error:  # noqa: BLE001 - it is raised below
            stopped_by = error
        else:
            stopped_by = self._ask_all(calls, lines, answers)
        # Another process's record of this shard is kept. Then these answers are lost, like the answers of a killed
        # process.
        self._lease.check()
        if len(answers) == len(lines):
            with payloads.writer(beside(shard, RAW)) as raw:
                for answer in answers.values():
                    raw.write(answer)
            now = self._deployment.clock()
            done: ShardFields = {"status": BatchStatus.ENDED, "ended_at": now, "reason": None}
            ledger.shards.move(shard.shard_id, Transition.ANSWERED, batch_key=sent.batch.batch_key, **done)
            if before:
                payloads.delete(beside(shard, SO_FAR))
        else:
            # Answers are paid, and a request must not be asked twice in a wave. So the answers are stored before the
            # shard is planned again. If the process is killed in between, the recovery of the shard uses them.
            if len(answers) > before:
                write_answers_so_far(payloads, shard, answers)
            until = self._gate.closed_until if isinstance(stopped_by, _TurnedAwayError) else None
            reason = str(stopped_by) or type(stopped_by).__name__
            # The answers so far are billed.
            kept = ledger.shards.get(shard.shard_id).bill.reserved_usd if answers else None
            rest: ShardFields = {"reason": reason, "waits_until": until, "reserved_usd": kept}
            ledger.shards.move(shard.shard_id, Transition.NOT_SENT, batch_key=sent.batch.batch_key, **rest)
        if stopped_by is not None and not isinstance(stopped_by, _TurnedAwayError):
            raise stopped_by

    def _calls(self, shard: Shard) -> _Calls:
        """Return the calls for a shard. Raises ConfigError where its provider lacks real time, or the wanted tier."""
        provider, spec, how = self._deployment.provider_of(shard), self._labeling.spec, self._labeling.realtime
        standard = real_time_of(provider).respond
        if how.tier != "flex":
            return _Calls(standard)
        # A deadline that the submission was planned with stops batches, also if the definition no longer has it.
        submission = self._deployment.ledger.submissions.get(shard.submission_id)
        or_batch = how.otherwise == "batch" and submission.deadline_at is None
        return _Calls(standard, flex_of(provider, spec.model, spec.endpoint).respond_flex, or_batch)

    def _ask_all(self, calls: _Calls, lines: list[bytes], answers: dict[int, bytes]) -> BaseException | None:
        """Add the answers as they arrive; return the error or interruption that stopped it, if any.

        After that, further calls do not start. Calls under way are waited for, because they are paid.
        """
        stopped_by: BaseException | None = None
        with Threads(self._labeling.realtime.concurrency, "dagster-llm-batch realtime") as pool:
            unasked = [number for number in range(len(lines)) if number not in answers]
            asked = {pool.submit(self._ask, calls, lines[number]): number for number in unasked}
            while asked:
                try:
                    for future in as_completed(list(asked)):
                        number = asked.pop(future)
                        answers[number] = _answer_of(future)
                except BaseException as error:  # noqa: BLE001 - Dagster's interruption is one
                    if stopped_by is None or isinstance(stopped_by, _TurnedAwayError):
                        stopped_by = error
                    asked = {future: number for future, number in asked.items() if not future.cancel()}
        return stopped_by

    def _ask(self, calls: _Calls, line: bytes) -> bytes:
        """Return the answer to one line. Repeats a call that was turned away, which costs nothing.

        Raises _TurnedAwayError if the patience is too short for that.
        """
        reason = ""
        call = calls.flex or calls.standard
        for pause in (*_PAUSES_SECONDS, None):
            wanted_seconds: float | None = None
            answer: bytes | None = None
            try:
                tried, wanted_seconds = self._answered(call, line)
                if call is calls.flex and not calls.or_batch and self._refusal(tried) is not None:
                    # The tier's own lack of capacity says nothing about the standard tier, so the run does not wait.
                    call = calls.standard
                    tried, wanted_seconds = self._answered(call, line)
                answer = tried
            except NoConnectionError as error:
                reason = str(error)
            else:
                refusal = self._refusal(answer)
                if refusal is None:
                    self._gate.let_in()
                if refusal is None or call is calls.flex:
                    return answer
                reason = refusal
            seconds = wanted_seconds or pause
            if seconds and not self._gate.turn_away(seconds, is_for_all=bool(wanted_seconds)):
                raise _TurnedAwayError(self._later(reason))
            if pause is None and answer is not None:
                return answer
            if pause is not None and not wanted_seconds:
                self._deployment.sleep(pause)
        raise _TurnedAwayError(self._later(reason))

    def _refusal(self, answer: bytes) -> str | None:
        """Return the reason for which the provider turned a call away; None for any other answer."""
        result = self._codec.decode(answer)
        if result.outcome is not Outcome.ERRORED or not result.retryable:
            return None
        return result.reason or "it turns calls away"

    def _answered(self, call: Callable[[bytes], bytes], line: bytes) -> tuple[bytes, float | None]:
        """Make a call as soon as it may be made; see `_answered`."""
        self._wait()
        # Each call is paid. A process that wakes after its lease has passed on makes no further call.
        self._lease.check()
        return _answered(call, line)

    def _wait(self) -> None:
        if self.is_turned_away:
            raise _TurnedAwayError(self._later("it turns calls away"))
        if (seconds := self._gate.seconds_to_wait()) > 0:
            self._deployment.sleep(seconds)

    def _later(self, reason: str) -> str:
        until = self._gate.closed_until
        then = "later" if until is None else f"after {until.isoformat(timespec='seconds')}"
        return f"{self._labeling.model} is asked for the rest {then}: {reason}"


def _answered(call: Callable[[bytes], bytes], line: bytes) -> tuple[bytes, float | None]:
    """Return the answer, and the seconds to wait before the next call. Raises if there is no answer."""
    try:
        return call(line), None
    except TransientError as error:
        if error.answer is None:
            raise
        return error.answer, error.retry_after_seconds


def _answer_of(future: Future[bytes]) -> bytes:
    """Return the answer, or an empty line if it is unknown whether the call arrived."""
    try:
        return future.result()
    except (CredentialsError, ConfigError, LeaseError, _TurnedAwayError):
        raise
    except LLMBatchError:
        return b"\n"
