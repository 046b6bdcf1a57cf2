"""Knowledge of a partition that is planned: its submissions, their answers, its erased and its earlier rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from dagster_llm_batch.core.keys import ErasedKeys
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.pruned import find_pruned
from dagster_llm_batch.storage.ledger.records import Submission

if TYPE_CHECKING:
    from dagster_llm_batch.files.earlier_rows import EarlierRows
    from dagster_llm_batch.loop.known_requests import KnownRequests

__all__ = ["Knowledge", "find_requests", "history_of", "read_knowledge"]


@dataclass(frozen=True)
class Knowledge:
    """The records and files of a partition that is planned.

    Attributes:
        history: All submissions of the partition, the newest first.
        reusable: Those whose answers the new submission can reuse, the newest first.
        requests: The requests of these, if there are any.
        erased: Keys of rows that a person had erased.
        rows: The rows of the newest submission, if any: unchanged rows are recognized by them.
        again: True if a person asks for another attempt.
        read_at: The time just before all this was read. Shards that are collected later were in flight: the new
            submission reuses their answers.
    """

    history: Sequence[Submission]
    reusable: Sequence[Submission]
    requests: KnownRequests | None
    erased: ErasedKeys
    rows: EarlierRows | None
    again: bool
    read_at: datetime

    @property
    def reusable_ids(self) -> tuple[str, ...]:
        """The ids of the submissions whose answers can be reused."""
        return tuple(submission.submission_id for submission in self.reusable)


def history_of(deployment: Deployment, labeling: Labeling, partition: str) -> tuple[str, list[Submission]]:
    """Return the name under which a partition has submissions, and these, the newest first.

    It may be a former name of the dataset, which `Engine.plan` would replace before it plans.
    """
    for name in (labeling.asset, *labeling.resend.former_names):
        if history := deployment.ledger.submissions.of_partition(deployment.namespace, name, partition):
            return name, history
    return labeling.asset, []


def read_knowledge(
    deployment: Deployment,
    labeling: Labeling,
    partition: str,
    configuration: str,
    history: Sequence[Submission],
    *,
    erased_from: Sequence[str],
    again: bool,
) -> Knowledge:
    """Return the knowledge of a partition with this history.

    `configuration` is the fingerprint of the labeling's present one; `erased_from` are the names of the dataset.
    """
    read_at = deployment.clock()
    reusable = _reusable(deployment, history, configuration)
    return Knowledge(
        history=history,
        reusable=reusable,
        requests=find_requests(deployment, labeling, reusable, again=again),
        erased=deployment.erased_keys(partition, *erased_from),
        rows=_earlier_rows(deployment, labeling, history),
        again=again,
        read_at=read_at,
    )


def find_requests(
    deployment: Deployment, labeling: Labeling, submissions: Sequence[Submission], *, again: bool, of: str | None = None
) -> KnownRequests | None:
    """Return the requests that these submissions, the newest first, have asked one model. See find_known."""
    if not submissions:
        return None
    from dagster_llm_batch.loop.known_requests import find_known  # noqa: PLC0415 - of no use to the first rows

    return find_known(labeling, deployment, submissions, again=again, of=of)


def _reusable(deployment: Deployment, history: Sequence[Submission], configuration: str) -> list[Submission]:
    same = [submission for submission in history if submission.config_fingerprint == configuration]
    if not same:
        return []
    pruned = find_pruned(deployment.ledger, same)
    return [submission for submission in same if submission.submission_id not in pruned]


def _earlier_rows(deployment: Deployment, labeling: Labeling, history: Sequence[Submission]) -> EarlierRows | None:
    # Workers render their rows by themselves.
    if not history or labeling.workers is not None:
        return None
    from dagster_llm_batch.files.earlier_rows import EarlierRows  # noqa: PLC0415 - of no use to the first rows

    return EarlierRows.of(deployment.payloads, history[0].manifest)
