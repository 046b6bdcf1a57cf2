"""Labeling ends when an interval is narrow enough. Until then, rounds are proposed, and the check shows the rest."""

from __future__ import annotations

import random
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from dagster_llm_batch import StopRule, gold_sample_assets
from dagster_llm_batch.errors import ConfigError

N = 2_000
IDS = [f"t{n:04d}" for n in range(N)]
TRUTH = dict(zip(IDS, random.Random(1).choices(["bug", "how_to"], k=N), strict=True))
WRONG = set(random.Random(2).sample(IDS, N // 10))


class Desk:
    """Labels, a sample with a rule, and people whose gold is a table that grows."""

    def __init__(self, tmp_path: Any, **arguments: Any) -> None:
        self.gold: list[dict[str, Any]] = []
        self.instance = dg.DagsterInstance.ephemeral()
        self.resources = {"io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path))}
        self.ids = list(IDS)

        @dg.asset
        def labels() -> pa.Table:
            said = [{"bug": "how_to", "how_to": "bug"}[TRUTH[n]] if n in WRONG else TRUTH[n] for n in self.ids]
            return pa.table({"id": self.ids, "topic": said})

        @dg.asset
        def gold() -> pa.Table:
            return pa.Table.from_pylist(self.gold)

        rule = arguments.pop("stop", StopRule(0.05))
        usual = {"candidates": [labels], "key": "id", "target": "topic", "gold": gold, "stop": rule}
        sample = gold_sample_assets(name="to_label", **{**usual, **arguments})
        self.assets = [labels, gold, *sample]
        self.run("labels")

    def run(self, *names: str) -> None:
        self.result = dg.materialize(
            self.assets, selection=list(names), instance=self.instance, resources=self.resources
        )

    def propose(self) -> list[dict[str, Any]]:
        """Materialize gold, if there is some, and the sample."""
        self.run(*(["gold"] if self.gold else []), "to_label")
        defs = dg.Definitions(assets=self.assets, resources=self.resources)
        return defs.load_asset_value("to_label", instance=self.instance).to_pylist()

    def judge(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            sample = {name: value for name, value in row.items() if name.startswith("sample_")}
            self.gold.append({"id": row["id"], "topic": TRUTH[row["id"]], "judged_seconds": 3.0, **sample})

    def told(self, name: str) -> Any:
        [record] = self.instance.fetch_materializations(dg.AssetKey("to_label"), limit=1).records
        value = record.asset_materialization.metadata.get(f"llm_batch/{name}")
        return None if value is None else value.value

    def passes(self) -> bool:
        [check] = self.result.get_asset_check_evaluations()
        assert check.check_name == "enough_gold"
        assert check.severity is dg.AssetCheckSeverity.WARN
        return bool(check.passed)


@pytest.fixture
def desk(tmp_path: Any) -> Any:
    return lambda **arguments: Desk(tmp_path, **arguments)


@pytest.mark.slow
def test_rounds_are_proposed_until_the_interval_is_narrow_enough_and_then_none(desk):
    one = desk()
    sizes = []
    while rows := one.propose():
        assert not one.passes()
        assert {row["sample_round"] for row in rows} == {len(sizes) + 1}
        assert not {row["id"] for row in rows} & {row["id"] for row in one.gold}
        sizes.append(len(rows))
        one.judge(rows)
    assert sizes[0] == 100
    assert 2 <= len(sizes) <= 3
    assert one.passes()
    assert one.told("half_width") <= 0.05
    assert (one.told("rows_to_label"), one.told("minutes_to_label")) == (0, 0)
    assert "Enough is labeled" in one.told("to_label")
    # The result does not change.
    assert one.propose() == []


@pytest.mark.slow
def test_a_round_stays_as_it_was_drawn_until_all_of_it_is_judged(desk):
    one = desk()
    first = one.propose()
    assert one.told("half_width") is None
    one.judge(first[:60])
    assert one.propose() == first
    # An incomplete round is not a look.
    assert one.told("half_width") is None
    assert one.told("rows_to_label") == 40
    assert one.told("minutes_to_label") == pytest.approx(2)
    # The sample does not wait for removed rows.
    one.ids = [key for key in one.ids if key != first[60]["id"]]
    one.run("labels")
    assert len(one.propose()) == 99
    one.judge(first[61:])
    second = one.propose()
    assert {row["sample_round"] for row in second} == {2}
    assert one.told("rows_to_label") >= len(second)
    assert f"about {one.told('rows_to_label'):,} rows more" in one.told("to_label")


@pytest.mark.slow
def test_a_look_at_the_first_round_asks_for_more_than_an_interval_of_95_percent(desk):
    """Judge 100 rows, 90 of them right: 95 % is ± 0.077, and the first look has a sixteenth of the risk."""
    one = desk(stop=StopRule(0.08), random_share=1.0)
    one.judge(one.propose())
    assert one.propose()
    assert 0.08 < one.told("half_width") < 0.14


@pytest.mark.parametrize("figure", ["kappa", "macro_f1", "shares"])
def test_any_figure_that_has_an_interval_can_end_it(desk, figure):
    one = desk(stop=StopRule(0.2, figure=figure), sample_size=400)
    one.judge(one.propose())
    assert one.propose() == []
    assert one.passes()


def test_all_rows_are_labeled_before_it_is_narrow_enough(desk):
    one = desk(stop=StopRule(0.001), sample_size=None)
    one.judge(one.propose())
    assert one.propose() == []
    assert one.passes()


def test_it_needs_gold_and_a_width_that_says_something():
    with pytest.raises(ConfigError, match="give gold="):
        gold_sample_assets(name="to_label", candidates=["labels"], key="id", target="topic", stop=StopRule(0.02))
    with pytest.raises(ConfigError, match="half_width"):
        StopRule(2)


@pytest.mark.slow
def test_each_partition_has_a_rule_of_its_own(tmp_path):
    days = dg.StaticPartitionsDefinition(["mon", "tue"])
    said: list[dict[str, Any]] = []

    @dg.asset(partitions_def=days)
    def labels(context) -> pa.Table:
        return pa.table({"id": [f"{context.partition_key}{n}" for n in range(300)], "topic": ["bug"] * 300})

    @dg.asset
    def gold() -> pa.Table:
        return pa.Table.from_pylist(said)

    sample = gold_sample_assets(
        name="to_label",
        candidates=[labels],
        key="id",
        target="topic",
        gold=gold,
        stop=StopRule(0.1),
        sample_size=40,
        partitions_def=days,
    )
    assets, instance = [labels, gold, *sample], dg.DagsterInstance.ephemeral()
    resources = {"io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path))}

    def propose(day: str, *more: str) -> list[dict[str, Any]]:
        for names in filter(None, (more, ["to_label"])):
            partition = None if "gold" in names else day
            dg.materialize(
                assets, selection=list(names), partition_key=partition, instance=instance, resources=resources
            )
        defs = dg.Definitions(assets=assets, resources=resources)
        return defs.load_asset_value("to_label", instance=instance, partition_key=day).to_pylist()

    first = propose("mon", "labels")
    other = propose("tue", "labels")
    said += [
        {**{name: row[name] for name in row if name.startswith("sample_")}, "id": row["id"], "topic": "bug"}
        for row in first
    ]
    second = propose("mon", "gold")
    assert (len(first), {row["sample_round"] for row in second}) == (40, {2})
    # The rows of the other day are not judged yet.
    assert propose("tue") == other
