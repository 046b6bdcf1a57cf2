"""Sequential tests of checks: all interim looks at a dataset together keep the chance of a false alarm.

The state of each look is kept in the check's own metadata (`llm_batch/look`), in Dagster's event log, which all runs
share. A look is one partition in one state of its data, identified by a digest: materializing the same data again
is not another look. Its level depends on the partition's place among all partitions (`metrics.sequential_tests`). So
it is independent of other runs, of the order of a backfill, and of the number of parallel runs.

If a partition's data have changed since its first look, the further looks have the least possible level. Without
partitions, a place is the index of a state, in the order in which the states were seen. Wiping the check's history
starts the count again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Any

import dagster as dg

from dagster_llm_batch._dagster_private import check_history
from dagster_llm_batch.evaluation.stored_tables import partition_places
from dagster_llm_batch.metrics.sequential_tests import (
    ALPHA,
    LOOKS,
    life_evidence,
    log_payoffs,
    look_share,
    significance_level,
)

__all__ = ["InterimLook", "SequentialTest"]

_KEY = "llm_batch/look"
_READ = 4 * LOOKS + LOOKS // 2
"""Number of the check's evaluations to read: one life, with some repetitions. If more partitions than that are gone,
the places stop in the middle of a life, whose looks have less than their part.
"""


@dataclass(frozen=True)
class InterimLook:
    """The data that one evaluation of a check looks at.

    - `state`: digest of the data; empty if they cannot fail the check, which does not count as a look.
    - `question`: only looks with the same question pool their evidence over partitions.
    - `payoffs`: by name of the compared candidate and target, see `log_payoffs`.
    """

    partition: str | None
    state: str
    question: str = ""
    payoffs: Mapping[str, Sequence[float]] = field(default_factory=dict)


class SequentialTest:
    """The sequential test of one check, for one run. It does not need the looks of parallel runs."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        check: dg.AssetCheckKey,
        partitions_def: dg.PartitionsDefinition[Any] | None,
    ) -> None:
        self._instance = context.instance
        self._check = check
        self._partitions_def = partitions_def

    @cached_property
    def _seen(self) -> list[InterimLook]:
        """All looks, the first one first. Those of this run are appended."""
        looks = []
        for partition, evaluation in check_history(self._instance, self._check, _READ):
            kept = evaluation.metadata.get(_KEY)
            if isinstance(kept, dg.JsonMetadataValue) and isinstance(kept.value, dict):
                looks.append(InterimLook(partition, **kept.value))
        return looks[::-1]

    @cached_property
    def _places(self) -> dict[str, int]:
        """Places of the partitions, which they keep when others are removed, such as old dynamic partitions.

        A removed partition has had its looks; if its place were given to another one, two would share it.
        """
        places = partition_places(self._partitions_def, self._instance)
        gone = {look.partition for look in self._seen if look.partition is not None} - set(places)
        return {partition: place + len(gone) for partition, place in places.items()}

    def _nth(self, look: InterimLook) -> int:
        """Return which of the states of its partition a look is at: 0 for the first one."""
        seen = [one.state for one in self._seen if one.partition == look.partition and one.state]
        states = list(dict.fromkeys([*seen, look.state]))
        return states.index(look.state)

    def place(self, look: InterimLook) -> int:
        """Return the place of a look among those that share the chance of a false alarm."""
        nth = self._nth(look)
        if look.partition is None:
            return nth
        # The last place has the least share.
        return LOOKS - 1 if nth else self._places.get(look.partition, LOOKS - 1)

    def level(self, look: InterimLook, comparisons: int) -> float:
        """Return the p-value below which each of several comparisons of this look is an alarm."""
        return significance_level(self.place(look), comparisons)

    def evidence(self, look: InterimLook, name: str) -> float:
        """Return the evidence of this partition and those before it, on what `name` compares (see `life_evidence`)."""
        asked = [seen for seen in [*self._seen, look] if seen.question == look.question and name in seen.payoffs]
        # The last state of each partition counts.
        by_place = {
            self._places[seen.partition]: seen.payoffs[name] for seen in asked if seen.partition in self._places
        }
        assert look.partition is not None
        evidence = life_evidence(by_place, self._places[look.partition])
        return evidence * look_share(LOOKS - 1) if self._nth(look) else evidence

    def units_wanted(self, look: InterimLook, name: str, n_units: int, comparisons: int) -> int:
        """Return how many units this look needs to be an alarm if all of them got worse: `n_units` where those could,
        else the least number that could.
        """

        def could(n: int) -> bool:
            import numpy as np  # noqa: PLC0415  # optional dependency, which the payoffs were computed with

            worst = replace(look, payoffs={name: log_payoffs(np.ones(n))})
            return self.evidence(worst, name) >= comparisons / ALPHA

        return next(n for n in count(max(1, n_units)) if could(n))

    def keep(self, look: InterimLook) -> dict[str, dg.MetadataValue[Any]]:
        """Return the metadata of the check that later looks read."""
        self._seen.append(look)
        kept = {
            "state": look.state,
            "question": look.question,
            "payoffs": {k: list(v) for k, v in look.payoffs.items()},
        }
        return {_KEY: dg.MetadataValue.json(kept)}
