"""The real-time lane: one call for each request, several at once, and the answers stored as a batch's would be.

    planned ── commit `submitting` ──▶ a call for each request ──▶ raw file ──▶ commit `ended`

Shards in this lane are small, since a killed process loses the answers of one. No request is asked twice in a wave: a
call of unknown end leaves an empty line, and its request is left to the next wave. A run waits for a provider that
turns calls away while the labeling's patience lasts. Then the answers so far are kept beside the shard, which is
planned again.
"""

from __future__ import annotations

from concurrent.futures import Future, as_completed

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
from dagster_llm_batch.protocols import AnswersInRealTime, Codec
from dagster_llm_batch.providers.capabilities import real_time_of
from dagster_llm_batch.states import Move
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.records import Shard, ShardFields
from dagster_llm_batch.types import BatchStatus, Lane, Outcome

__all__ = ["Answerer"]

# Waits after answers that turn a call away without naming a time.
_PAUSES_SECONDS = (1.0, 4.0, 16.0)


class _TurnedAwayError(Exception):
    """The provider turns calls away for longer than the run waits. This call was not made, or had no effect."""


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
        """Return whether the patience is used up, so that this process makes no calls now."""
        return self._gate.closed_until is not None

    def answer(self, shard: Shard) -> None:
        """Bring a planned shard to `ended`, or back to `planned` with the answers so far where not all could be asked.

        Raises what stopped it: CredentialsError, ConfigError or an interruption; LeaseError where this process was
        frozen for longer than its lease, and another one may have gone on with the shard. Where the provider turns
        calls away nothing is raised: the shard waits for the time that it named.
        """
        provider = real_time_of(self._deployment.provider_of(shard))
        # As in a batch: settings may have changed since the shard was planned.
        model = f"{shard.provider}/{self._labeling.spec.model}"
        self._deployment.destinations.check(f"Submission {shard.submission_id}", model, self._labeling.spec.params)
        ledger, payloads = self._deployment.ledger, self._deployment.payloads
        lines = list(payloads.lines(shard.path))
        answers = answers_so_far(payloads, shard)
        before = len(answers)
        # Committed before the first call: a process that dies after this must not let the same calls be made again.
        sent = ledger.shards.move(shard.shard_id, Move.SEND, lane=Lane.REALTIME, sent_at=self._deployment.clock())
        stopped_by: BaseException | None
        try:
            # Nor is the receipt of another process's sending replaced.
            self._lease.check()
            write_receipts(self._deployment, [sent])
        # No call was made: the requests are asked later, and do not count as asked.
        except BaseException as error:  # noqa: BLE001 - it is raised below
            stopped_by = error
        else:
            stopped_by = self._ask_all(provider, lines, answers)
        # What another process has recorded of this shard stays: these answers are lost, as those of a killed one are.
        self._lease.check()
        if len(answers) == len(lines):
            with payloads.writer(beside(shard, RAW)) as raw:
                for answer in answers.values():
                    raw.write(answer)
            now = self._deployment.clock()
            done: ShardFields = {"status": BatchStatus.ENDED, "ended_at": now, "reason": None}
            ledger.shards.move(shard.shard_id, Move.ANSWERED, batch_key=sent.batch.batch_key, **done)
            if before:
                payloads.delete(beside(shard, SO_FAR))
        else:
            # What was answered is paid for, and what was asked must not be asked twice in a wave. It is stored before
            # the shard is planned again: a process that is killed in between leaves it to whoever recovers the shard.
            if len(answers) > before:
                write_answers_so_far(payloads, shard, answers)
            until = self._gate.closed_until if isinstance(stopped_by, _TurnedAwayError) else None
            reason = str(stopped_by) or type(stopped_by).__name__
            # What was answered is billed.
            kept = ledger.shards.get(shard.shard_id).bill.reserved_usd if answers else None
            rest: ShardFields = {"reason": reason, "waits_until": until, "reserved_usd": kept}
            ledger.shards.move(shard.shard_id, Move.NOT_SENT, batch_key=sent.batch.batch_key, **rest)
        if stopped_by is not None and not isinstance(stopped_by, _TurnedAwayError):
            raise stopped_by

    def _ask_all(
        self, provider: AnswersInRealTime, lines: list[bytes], answers: dict[int, bytes]
    ) -> BaseException | None:
        """Add the answers as they come; return the error or interruption that stopped it, if any.

        After that nothing more is asked, but calls under way are waited for: they are paid for.
        """
        stopped_by: BaseException | None = None
        with Threads(self._labeling.realtime.concurrency, "dagster-llm-batch realtime") as pool:
            unasked = [number for number in range(len(lines)) if number not in answers]
            asked = {pool.submit(self._ask, provider, lines[number]): number for number in unasked}
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

    def _ask(self, provider: AnswersInRealTime, line: bytes) -> bytes:
        """Return the answer to one line. Asks again where the call was turned away, which costs nothing.

        Raises _TurnedAwayError where the patience does not last for that.
        """
        reason = ""
        for pause in (*_PAUSES_SECONDS, None):
            self._wait()
            # Each call is paid for. A process that wakes after its lease has passed on makes no further one.
            self._lease.check()
            wanted_seconds: float | None = None
            answer: bytes | None = None
            try:
                answer, wanted_seconds = _answered(provider, line)
            except NoConnectionError as error:
                reason = str(error)
            else:
                result = self._codec.decode(answer)
                if result.outcome is not Outcome.ERRORED or not result.retryable:
                    self._gate.let_in()
                    return answer
                reason = result.reason or "it turns calls away"
            seconds = wanted_seconds or pause
            if seconds and not self._gate.turn_away(seconds, is_for_all=bool(wanted_seconds)):
                raise _TurnedAwayError(self._later(reason))
            if pause is None and answer is not None:
                return answer
            if pause is not None and not wanted_seconds:
                self._deployment.sleep(pause)
        raise _TurnedAwayError(self._later(reason))

    def _wait(self) -> None:
        if self.is_turned_away:
            raise _TurnedAwayError(self._later("it turns calls away"))
        if (seconds := self._gate.seconds_to_wait()) > 0:
            self._deployment.sleep(seconds)

    def _later(self, reason: str) -> str:
        until = self._gate.closed_until
        then = "later" if until is None else f"after {until.isoformat(timespec='seconds')}"
        return f"{self._labeling.model} is asked for the rest {then}: {reason}"


def _answered(provider: AnswersInRealTime, line: bytes) -> tuple[bytes, float | None]:
    """Return the answer, and for how many seconds the provider wants no other call. Raises where there is no answer."""
    try:
        return provider.respond(line), None
    except TransientError as error:
        if error.answer is None:
            raise
        return error.answer, error.retry_after_seconds


def _answer_of(future: Future[bytes]) -> bytes:
    """Return the answer, or an empty line where nobody knows whether the call arrived."""
    try:
        return future.result()
    except (CredentialsError, ConfigError, LeaseError, _TurnedAwayError):
        raise
    except LLMBatchError:
        return b"\n"
