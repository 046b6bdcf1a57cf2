"""Protocols of the functions and values that are handed to the loop: it imports neither cascades nor advice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from dagster_llm_batch.storage.ledger.records import Shard, Submission

if TYPE_CHECKING:
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.collect import Collector
    from dagster_llm_batch.loop.deployment import Deployment

__all__ = ["Escalate", "Older", "Tuning"]


class Tuning(Protocol):
    """Values for one new submission, chosen from the history of earlier ones. See advice/tuner.py."""

    @property
    def of_shards(self) -> Mapping[str, Mapping[str, int]]:
        """The chosen fields of shards, each by the model of the shards."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """All choices so far, which are stored with the submission."""
        ...

    def choose_lead(self, requests: int) -> timedelta:
        """Return how long before its deadline a submission of so many requests turns to real time."""
        ...

    def choose_sample(
        self, stored: Deployment, partition: str, rows: int, size: int, at_least: int, cheap: float
    ) -> int:
        """Return how many rows a cascade samples."""
        ...


class Older(Protocol):
    """Labels from before a change of the definition that may stay. See older_labels.py."""

    @property
    def rendered(self) -> Labeling | None:
        """The definition whose prompt finds the older requests of rows; None if the older labels are known already."""
        ...


class Escalate(Protocol):
    """Finds the requests to the oracle of a cascade, without the sample. See cascade/escalation.py."""

    def __call__(
        self,
        labeling: Labeling,
        deployment: Deployment,
        submission: Submission,
        shards: Sequence[Shard],
        collector: Collector,
    ) -> Sequence[tuple[Shard, Collection[str]]]:
        """Return the requests of each lane, with a shard that stands for them."""
        ...
