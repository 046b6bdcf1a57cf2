"""Places of looks when partitions come and go, and after a check's history was wiped."""

from __future__ import annotations

from uuid import uuid4

import dagster as dg
import pytest

from dagster_llm_batch.evaluation.sequential_tests import InterimLook, SequentialTest
from dagster_llm_batch.metrics.sequential_tests import significance_level

CHECK = dg.AssetCheckKey(dg.AssetKey("quality"), "regression")
DAYS = dg.DynamicPartitionsDefinition(name="days")


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def looks(instance, partitions_def=DAYS):
    """Return the sequential test with the looks that a run sees when it starts."""
    return SequentialTest(dg.build_asset_context(instance=instance), CHECK, partitions_def)


def look_at(instance, look, seen):
    """Look, and store the check as a run does. Return the level of this look."""
    level = seen.level(look, 1)
    evaluation = dg.AssetCheckEvaluation(
        CHECK.asset_key, CHECK.name, passed=True, metadata=seen.keep(look), partition=look.partition
    )
    event = dg.DagsterEvent("ASSET_CHECK_EVALUATION", "evaluate", event_specific_data=evaluation)
    instance.report_dagster_event(event, run_id=str(uuid4()))
    return level


def test_partitions_that_are_taken_away_leave_their_places_empty(instance):
    """Keep seven days. Once, each new day took the place of the seventh, with its large part of the 5 %, for ever."""
    levels = []
    for day in range(30):
        instance.add_dynamic_partitions("days", [f"day {day}"])
        if day >= 7:
            instance.delete_dynamic_partition("days", f"day {day - 7}")
        levels.append(look_at(instance, InterimLook(f"day {day}", state=f"state {day}"), looks(instance)))
    assert levels == pytest.approx([significance_level(place) for place in range(30)])


def test_looking_at_a_state_again_is_no_other_look_whatever_was_between(instance):
    instance.add_dynamic_partitions("days", ["mon", "tue"])
    first, grown, shrunk = (InterimLook("mon", state=state) for state in ("300 rows", "310 rows", "300 rows"))
    levels = [look_at(instance, look, looks(instance)) for look in (first, grown, shrunk)]
    # Grown gold is another look, and has the least level. The gold after it shrank was looked at before.
    assert levels == [significance_level(0), significance_level(364), significance_level(0)]
    assert look_at(instance, InterimLook("tue", state="any"), looks(instance)) == significance_level(1)


def test_runs_side_by_side_have_the_levels_of_runs_in_turn(instance):
    instance.add_dynamic_partitions("days", ["mon", "tue", "wed"])
    side_by_side = [(day, looks(instance)) for day in ("wed", "mon", "tue")]
    levels = {day: look_at(instance, InterimLook(day, state=day), seen) for day, seen in side_by_side}
    assert levels == {"mon": significance_level(0), "tue": significance_level(1), "wed": significance_level(2)}


def test_a_history_that_was_wiped_begins_anew(instance):
    look = [InterimLook(None, state=f"state {at}") for at in range(2)]
    assert [look_at(instance, one, looks(instance, None)) for one in look] == [
        significance_level(0),
        significance_level(1),
    ]
    instance.wipe_assets([CHECK.asset_key])
    assert looks(instance, None).level(look[1], 1) == significance_level(0)
