"""What earlier partitions of a cascade say: a threshold for the next one, and whether what was promised holds.

There is no state of its own. The ledger has with each settled submission what its audit found (`Submission.audit`), the
payload store beside its manifest the rows that the oracle has answered, both computed from stored results alone: what
is settled again after a crash, or with a ledger that was restored from a backup, says the same.

Which partitions count is a matter of their keys, in the order of text, and of what is settled when a partition is
planned: those before it, each by its newest settled submission, with the same models, parameters, prompt and promise.
What was found is stored with the plan, and stands. So a partition that is planned while those before it are in flight,
as most are in a backfill, takes what was settled before these, or a sample of its own; and one that is planned after
later ones learns nothing of them.

Loaded only where a cascade is `Rolling`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dagster_llm_batch.core.audit import Audited, Calibration, Point, Track, calibrate_points, find_alarm, track
from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.files.request_files import CALIBRATION, levels_in

if TYPE_CHECKING:
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.deployment import Deployment
    from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["calibrate_on_earlier", "history_id", "track_of"]


# So many damaged files are named.
_NAMED = 3


class _Earlier(NamedTuple):
    """What the ledger has of a partition: its audit, how many rows the oracle has answered, and where they are."""

    audited: Audited
    points: int
    folder: str


def history_id(configuration: str, labeling: Labeling, cascade: Cascade) -> str:
    """Return a digest of what partitions must have in common so that one says something of the other.

    `configuration` is that of both models. The audited share is part of it, so that the rows of a window weigh alike.
    """
    content = [configuration, labeling.prompt_version, *cascade.promise[:4], _rolling(cascade).audit]
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]


def calibrate_on_earlier(
    deployment: Deployment, labeling: Labeling, cascade: Cascade, partition: str, independent: int, history: str
) -> Calibration | str:
    """Return the threshold that the last rows of earlier partitions give to so many independent rows, or why none, in
    words.

    Partitions are taken whole, the last ones first, until there are enough rows, and none from before an alarm.
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
        # What another partition has lost keeps none from its plan.
        try:
            points += _points_in(deployment, one.folder)
        except (PayloadError, OSError, ValueError, TypeError, LookupError):
            damaged.append(f"{one.folder}/{CALIBRATION}")
        partitions.append(one.audited.partition)
        if len(points) >= wanted:
            earlier = (partitions[-1], partitions[0])
            found = calibrate_points(points, earlier, independent, cascade.least_share, cascade.confidence)
            # A sample of its own counts rows, whoever shares a request, and may accept some.
            return found if found.allowed >= 0 else _too_alike(len(points), independent)
    # Files were pruned, or rows erased.
    return f"{lacking}, of which {len(points):,} are stored still{_damage_text(damaged)}"


def _damage_text(paths: Sequence[str]) -> str:
    """Return which files are damaged, and what a person can do; nothing where none is."""
    if not paths:
        return ""
    named = ", ".join(paths[:_NAMED]) + (f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else "")
    return (
        f" ({named} cannot be read: damaged. Restore what is damaged from a backup, and partitions that are planned "
        "after that count it again; until then each takes a sample of its own, which is paid for)"
    )


def _too_alike(points: int, independent: int) -> str:
    return (
        f"{points:,} earlier rows could accept none of this partition, whose rows count as {independent:,} independent "
        "ones: rows of one request are right or wrong together"
    )


def track_of(deployment: Deployment, labeling: Labeling, submission: Submission, levels: Levels | None) -> Track | None:
    """Return what the audits of a partition and those before it say together; None where it has none."""
    if levels is None or levels.audit is None or levels.audit.wrong is None:
        return None
    before = _earlier(deployment, labeling.asset, submission.partition, levels.audit.history_id)
    own = Audited(submission.partition, levels.audit.rows, levels.audit.wrong)
    return track([*(one.audited for one in before), own], levels.agreement, levels.confidence)


def _rolling(cascade: Cascade) -> Rolling:
    assert isinstance(cascade.calibrate, Rolling)
    return cascade.calibrate


def _earlier(deployment: Deployment, asset: str, partition: str, history: str) -> list[_Earlier]:
    """Return the settled partitions before this one, in order."""
    audits = deployment.ledger.history.audits(deployment.namespace, asset)
    return [
        _Earlier(Audited(other, found["rows"], found["wrong"]), found["points"], manifest.rpartition("/")[0])
        for other, (manifest, found) in sorted(audits.items())
        if other < partition and found["history"] == history
    ]


def _points_in(deployment: Deployment, folder: str) -> list[Point]:
    # Pruned: there is none. One that is pruned just now is not there either.
    try:
        levels = levels_in(deployment.payloads, folder)
    except FileNotFoundError:
        levels = None
    if levels is None and deployment.payloads.exists(f"{folder}/{CALIBRATION}"):
        raise PayloadError(f"{folder}/{CALIBRATION} is there, and cannot be read.")
    return [] if levels is None or levels.audit is None else levels.audit.points or []
