"""The real-time lane: one call for each request, some at once, and the answers stored as a batch's would be.

    planned ── commit `submitting` ──▶ a call for each request ──▶ raw file ──▶ commit `ended`

A shard here is small: a process that is killed loses the answers of one, and no request is asked twice in a wave. What
was not answered is missing from the raw file, and is for the next wave.
"""

from __future__ import annotations

from concurrent.futures import Future, as_completed
from datetime import datetime, timedelta

from dagster_llm_batch.engine.definition import Labeling
from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.engine.shards import RAW, beside
from dagster_llm_batch.engine.threads import Threads
from dagster_llm_batch.errors import ConfigError, CredentialsError, LLMBatchError, TransientError
from dagster_llm_batch.protocols import Codec, Provider
from dagster_llm_batch.states import Move
from dagster_llm_batch.storage.payloads import PayloadWriter
from dagster_llm_batch.storage.records import Shard
from dagster_llm_batch.types import BatchStatus, Lane, Outcome

__all__ = ["Answerer"]

_PAUSES_SECONDS = (1.0, 4.0, 16.0)  # after an answer that says: later, and not when
_LONGEST_WISH_SECONDS = 300.0


class Answerer:
    """Answers shards of one labeling in real time."""

    def __init__(self, labeling: Labeling, deployment: Deployment) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._codec: Codec = deployment.codec(labeling)
        self._not_before: datetime | None = None

    def answer(self, shard: Shard) -> None:
        """Bring a planned shard to `ended`. Raises CredentialsError or ConfigError, then `planned` if nothing came."""
        provider = self._deployment.provider_of(shard)
        ledger, payloads = self._deployment.ledger, self._deployment.payloads
        lines = list(payloads.lines(shard.path))
        ledger.move(shard.shard_id, Move.SEND, lane=Lane.REALTIME, sent_at=self._deployment.clock())
        with payloads.writer(beside(shard, RAW)) as raw:
            wrong = self._ask_all(provider, lines, raw)
        if wrong is not None and not raw.bytes and isinstance(wrong, CredentialsError | ConfigError):
            payloads.delete(beside(shard, RAW))
            ledger.move(shard.shard_id, Move.NOT_SENT, reason=str(wrong))
            raise wrong
        ledger.move(shard.shard_id, Move.ANSWERED, status=BatchStatus.ENDED, ended_at=self._deployment.clock())
        if wrong is not None:
            raise wrong

    def _ask_all(self, provider: Provider, lines: list[bytes], raw: PayloadWriter) -> BaseException | None:
        """Write the answers as they come. After an error or an interruption, which is returned, nothing more is asked,
        and what is on its way still comes: it is paid for.
        """
        wrong: BaseException | None = None
        with Threads(self._labeling.realtime_concurrency, "dagster-llm-batch realtime") as pool:
            asked = {pool.submit(self._ask, provider, line) for line in lines}
            while asked:
                try:
                    for future in as_completed(asked):
                        asked.discard(future)
                        raw.write(_answer_of(future))
                except BaseException as error:  # noqa: BLE001 - Dagster's interruption is one
                    wrong = wrong or error
                    asked = {future for future in asked if not future.cancel()}
        return wrong

    def _ask(self, provider: Provider, line: bytes) -> bytes:
        """The answer to one line; asked again where it says that it was turned away, which costs nothing.

        A rate limit is for all calls: none is made before the time that one was told.
        """
        for pause in _PAUSES_SECONDS:
            self._wait()
            answer, wish_seconds = _answered(provider, line)
            result = self._codec.decode(answer)
            if result.outcome is not Outcome.ERRORED or not result.retryable:
                return answer
            if wish_seconds:
                until = self._deployment.clock() + timedelta(seconds=min(wish_seconds, _LONGEST_WISH_SECONDS))
                self._not_before = max(self._not_before or until, until)
            else:
                self._deployment.sleep(pause)
        self._wait()
        return _answered(provider, line)[0]

    def _wait(self) -> None:
        if self._not_before is not None:
            left = self._not_before - self._deployment.clock()
            if left > timedelta():
                self._deployment.sleep(left.total_seconds())


def _answered(provider: Provider, line: bytes) -> tuple[bytes, float | None]:
    """The answer, and for how many seconds the provider wants no other call."""
    try:
        return provider.respond(line), None
    except TransientError as error:
        if error.answer is None:
            raise
        return error.answer, error.retry_after_seconds


def _answer_of(future: Future[bytes]) -> bytes:
    """An empty line where nobody knows whether the call arrived: it is not made again in this wave."""
    try:
        return future.result()
    except (CredentialsError, ConfigError):
        raise
    except LLMBatchError:
        return b"\n"
