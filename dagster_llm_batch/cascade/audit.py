"""Audits of earlier partitions of a cascade: they set the next threshold, and check the guarantee.

The module has no state. The ledger stores the audit of each complete submission (`Submission.audit`). The payload store
has the rows with the oracle's answers, next to the manifest. Both are computed from stored results alone, so they are
the same after a crash, or after a backup of the ledger was restored.

The partitions before a partition count, in the order of their keys as text. Each counts by its newest complete
submission at the time of the plan, if models, parameters, prompt and guarantee are the same. The plan stores the
result, which is final. In a backfill, most partitions are planned while earlier ones are in flight: such a partition
uses older partitions, or its own sample. A partition never uses later partitions.

Only a `Rolling` cascade imports this module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dagster_llm_batch.core.audit import (
    Audited,
    AuditHistory,
    Calibration,
    Point,
    calibrate_points,
    find_alarm,
    summarize_audits,
)
from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.files.request_files import CALIBRATION, levels_in

if TYPE_CHECKING:
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.deployment import Deployment
    from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["audit_history_of", "calibrate_on_earlier", "history_id"]


# The number of damaged files that a message names.
_NAMED = 3


class _Earlier(NamedTuple):
    """A partition in the ledger: its audit, and the number and the folder of the rows with the oracle's answers."""

    audited: Audited
    points: int
    folder: str


def history_id(configuration: str, labeling: Labeling, cascade: Cascade) -> str:
    """Return a digest of the settings that partitions must share before one counts for the other.

    `configuration` covers both models. The digest includes the audited share, so that all rows of a window have the
    same weight.
    """
    content = [configuration, labeling.prompt_version, *cascade.promise[:4], _rolling(cascade).audit]
    if labeling.near is not None:
        # Near copies are no part of the rows that set a threshold.
        content.append(labeling.near.grouping)
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]


def calibrate_on_earlier(
    deployment: Deployment, labeling: Labeling, cascade: Cascade, partition: str, independent: int, history: str
) -> Calibration | str:
    """Return a threshold by the last rows of earlier partitions, for a partition with `independent` rows.

    Takes whole partitions, the last ones first, until there are enough rows. Partitions before an alarm are left out.
    Returns the reason in words if there is no threshold.
    """
    wanted, known = _rolling(cascade).rows, _earlier(deployment, labeling.asset, partition, history)
    alarm = find_alarm([one.audited for one in known], cascade.least_share)
    usable = [one for one in known if one.points and (alarm is None or one.audited.partition > alarm)]
    since = "" if alarm is None else f" since the alarm of {alarm}"
    there = sum(one.points for one in usable)
    lacking = f"they have {there:,} of {wanted:,} rows that the oracle has answered{since}"
    if there < wanted:
        return lacking
    points: list[Point] = []
    partitions: list[str] = []
    damaged: list[str] = []
    for one in reversed(usable):
        # A plan does not fail because another partition lost files.
        try:
            points += _points_in(deployment, one.folder)
        except (PayloadError, OSError, ValueError, TypeError, LookupError):
            damaged.append(f"{one.folder}/{CALIBRATION}")
        partitions.append(one.audited.partition)
        if len(points) >= wanted:
            earlier = (partitions[-1], partitions[0])
            found = calibrate_points(points, earlier, independent, cascade.least_share, cascade.confidence)
            # The partition's own sample counts rows, even of shared requests, so it may accept some.
            return found if found.allowed >= 0 else _too_alike(len(points), independent)
    # Files were pruned, or rows erased.
    return f"{lacking}, of which {len(points):,} are stored still{_damage_text(damaged)}"


def _damage_text(paths: Sequence[str]) -> str:
    """Return the damaged files and the next step in words; an empty text without damaged files."""
    if not paths:
        return ""
    named = ", ".join(paths[:_NAMED]) + (f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else "")
    return (
        f" ({named} cannot be read: damaged. Restore the files from a backup; then the next partitions count them "
        "again. Until then, each partition pays for its own sample)"
    )


def _too_alike(points: int, independent: int) -> str:
    return (
        f"{points:,} earlier rows cannot accept any row of this partition, whose rows count as {independent:,} "
        "independent ones: rows of one request are right or wrong together"
    )


def audit_history_of(
    deployment: Deployment, labeling: Labeling, submission: Submission, levels: Levels | None
) -> AuditHistory | None:
    """Return the joint result of the audits of a partition and the partitions before it; None without an audit."""
    if levels is None or levels.audit is None or levels.audit.wrong is None:
        return None
    before = _earlier(deployment, labeling.asset, submission.partition, levels.audit.history_id)
    own = Audited(submission.partition, levels.audit.rows, levels.audit.wrong)
    return summarize_audits([*(one.audited for one in before), own], levels.agreement, levels.confidence)


def _rolling(cascade: Cascade) -> Rolling:
    assert isinstance(cascade.calibrate, Rolling)
    return cascade.calibrate


def _earlier(deployment: Deployment, asset: str, partition: str, history: str) -> list[_Earlier]:
    """Return the complete partitions before this one, in order."""
    audits = deployment.ledger.history.audits(deployment.namespace, asset)
    return [
        _Earlier(Audited(other, found["rows"], found["wrong"]), found["points"], manifest.rpartition("/")[0])
        for other, (manifest, found) in sorted(audits.items())
        if other < partition and found["history"] == history
    ]


def _points_in(deployment: Deployment, folder: str) -> list[Point]:
    # A pruned file is missing, also if another process prunes it now.
    try:
        levels = levels_in(deployment.payloads, folder)
    except FileNotFoundError:
        levels = None
    if levels is None and deployment.payloads.exists(f"{folder}/{CALIBRATION}"):
        raise PayloadError(f"{folder}/{CALIBRATION} is there, and cannot be read.")
    return [] if levels is None or levels.audit is None else levels.audit.points or []
