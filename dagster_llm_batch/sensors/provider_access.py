"""The providers that a tick can ask, or a run could use. Each is made, and if necessary asked, once in a tick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dagster_llm_batch.errors import ConfigError, CredentialsError, LLMBatchError, TransientError
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.loop.provider_facts import ask_provider, is_of_account
from dagster_llm_batch.loop.status import advise_on_no_answer
from dagster_llm_batch.loop.waits import needs_provider
from dagster_llm_batch.states import HoldReason, ShardState

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.storage.ledger.records import Shard

__all__ = ["ProviderAccess"]


class ProviderAccess:
    """The providers of a deployment in one tick. `trouble` takes errors of other kinds than ours."""

    def __init__(self, engine: Engine, trouble: Callable[[str, Exception], None]) -> None:
        self._engine = engine
        self._trouble = trouble
        self._accounts: dict[str, str | None] = {}
        # By name of a provider: the reason why it cannot be made.
        self._unmade: dict[str, str] = {}
        # By name of a provider: the reason why it does not answer a list call, and whether that is temporary.
        self._answers: dict[str, tuple[str, bool] | None] = {}

    def account(self, name: str) -> str | None:
        """Return the account of a provider; None if it cannot be made."""
        if name not in self._accounts:
            self._accounts[name] = None
            try:
                self._accounts[name] = self._engine.provider(name).account
            except LLMBatchError as error:
                self._unmade[name] = str(error)
            except Exception as error:  # noqa: BLE001 - a provider may be the user's own: anything may come
                self._unmade[name] = f"provider {name}: {type(error).__name__}: {error}"
                self._trouble(f"provider {name}", error)
        return self._accounts[name]

    def reason_not_to_ask(self, shard: Shard) -> str | None:
        """Return why a shard's provider cannot be asked about its batch, for a person to fix; None if it can."""
        account = self.account(shard.provider)
        if account is None:
            return self.reason_not_to_use(shard.provider)
        if is_of_account(shard, account):
            return None
        return str(RULES[HoldReason.CANNOT_ASK].message(shard.provider, shard.account, account))

    def reason_not_to_use(self, name: str) -> str | None:
        """Return why a provider cannot be made, for a person to fix; None if it can."""
        return self._unmade.get(name) if self.account(name) is None else None

    def reason_not_to_run(
        self, names: Sequence[str], shards: Sequence[Shard], *, is_in_trouble: bool
    ) -> tuple[str | None, bool]:
        """Return why a run for these shards would fail, and whether the reason is temporary; None if it may succeed.

        `names` are the providers that it needs in any case. If the last run failed (`is_in_trouble`), the providers of
        waiting shards are asked, too.
        """
        waiting = [shard for shard in shards if shard.state is ShardState.PLANNED or needs_provider(shard)]
        reasons = [*map(self.reason_not_to_use, names), *map(self.reason_not_to_ask, waiting)]
        if (reason := next((each for each in reasons if each is not None), None)) is not None or not is_in_trouble:
            return reason, False
        answers = map(self._reason_not_to_answer, dict.fromkeys(shard.provider for shard in waiting))
        return next((answer for answer in answers if answer is not None), (None, False))

    def _reason_not_to_answer(self, name: str) -> tuple[str, bool] | None:
        """Ask a provider, which costs nothing; return why it does not answer, and whether the reason is temporary.

        Returns None if it answers, or for an error without relevance for a run.
        """
        if name not in self._answers:
            self._answers[name] = None
            try:
                ask_provider(self._engine.provider(name), self._engine.now())
            except (CredentialsError, ConfigError) as error:
                self._answers[name] = str(advise_on_no_answer(str(error))), False
            except TransientError as error:
                self._answers[name] = str(error), True
            except Exception as error:  # noqa: BLE001 - as above
                if not isinstance(error, LLMBatchError):
                    self._trouble(f"provider {name}", error)
        return self._answers[name]
