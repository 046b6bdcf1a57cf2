"""Estimates in a real Dagster: partitions are groups, and people's scores correct a judge's."""

from __future__ import annotations

from random import Random

import dagster as dg
import pyarrow as pa
import pytest
from code_location import failure
from pydantic import BaseModel, Field

from dagster_llm_batch import estimate_assets
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.candidates import Candidate, targets_of
from dagster_llm_batch.evaluation.value_ends import with_ends
from dagster_llm_batch.metrics import Target

DAYS = dg.StaticPartitionsDefinition(["mon", "tue"])
N = 120
GIVEN = {"gold": "gold", "candidates": ["labels"], "key": "id", "target": "topic"}


@dg.asset(partitions_def=DAYS)
def labels(context):
    """Label a third of the rows as billing on Monday, half on Tuesday, and wrongly every tenth of the others."""
    day = context.partition_key
    said = ["billing" if is_billing(day, n) or n % 10 == 1 else "bug" for n in range(N)]
    return pa.table({"id": [f"{day}{n}" for n in range(N)], "topic": said})


def is_billing(day, n):
    return n % 3 == 0 if day == "mon" else n % 2 == 0


@dg.asset
def gold():
    rows = Random(2).sample([(day, n) for day in ("mon", "tue") for n in range(N)], 80)
    topics = ["billing" if is_billing(day, n) else "bug" for day, n in rows]
    return pa.table({"id": [f"{day}{n}" for day, n in rows], "topic": topics})


class Project:
    def __init__(self, tmp_path, assets):
        self.assets = assets
        self.instance = dg.DagsterInstance.ephemeral()
        self.resources = {"io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path))}

    def run(self, *names, partition=None, succeeds=True):
        result = dg.materialize(
            self.assets,
            instance=self.instance,
            resources=self.resources,
            selection=list(names),
            partition_key=partition,
            raise_on_error=False,
        )
        assert result.success is succeeds
        return result

    def rows(self, name, **wanted):
        defs = dg.Definitions(assets=self.assets, resources=self.resources)
        table = defs.load_asset_value(name, instance=self.instance).to_pylist()
        return [row for row in table if all(row[column] == value for column, value in wanted.items())]

    def metadata(self, name):
        [record] = self.instance.fetch_materializations(dg.AssetKey(name), limit=1).records
        return record.asset_materialization.metadata


def test_partitions_are_groups_that_are_estimated_and_compared(tmp_path):
    made = estimate_assets(
        name="totals", gold="gold", candidates=["labels"], key="id", target="topic", group_by="partition"
    )
    project = Project(tmp_path, [labels, gold, *made])
    for day in ("mon", "tue"):
        project.run("labels", partition=day)
    project.run("gold", "totals")
    whole, mon, tue, gap = project.rows("totals", figure="share", label="billing")
    assert (whole["group"], whole["n_rows"], whole["n_gold"]) == (None, 2 * N, 80)
    assert (mon["group"], tue["group"], mon["n_rows"]) == ("mon", "tue", N)
    assert (gap["group"], gap["against"]) == ("tue", "mon")
    # some of every tenth row really are billing
    assert whole["naive"] == pytest.approx((100 + 8 + 12) / 240)
    for row, truth in ((whole, 100 / 240), (mon, 1 / 3), (tue, 0.5)):
        assert row["powered_low"] < truth < row["powered_high"]
    assert tue["powered_high"] - tue["powered_low"] < tue["gold_only_high"] - tue["gold_only_low"]
    assert tue["worth_gold_rows"] > tue["n_gold"]
    shown = project.metadata("totals")
    assert shown["llm_batch/gold_drawn"].value.startswith("taken as drawn from all rows alike")
    assert "| labels | share of billing | tue less mon |" in shown["llm_batch/estimates"].md_str
    assert "data:image/png" in shown["llm_batch/estimates"].md_str
    assert shown["llm_batch/share billing of labels"].value == pytest.approx(whole["powered"])


def test_scores_of_a_judge_are_corrected_by_those_of_people(tmp_path):
    """Let the judge give long answers one point too much. People scored some of both, with the weights of a sample."""

    @dg.asset
    def verdicts():
        rows = [(f"{name}/{n}", name, 3 + n % 2 + (name == "long")) for name in ("short", "long") for n in range(N)]
        ids, names, scores = zip(*rows, strict=True)
        return pa.table({"case_id": ids, "candidate": names, "faithful": scores})

    @dg.asset
    def people():
        ids = [f"{name}/{n}" for name in ("short", "long") for n in range(0, N, 3)]
        scores = [3 + int(case.split("/")[1]) % 2 for case in ids]
        weights = [2.5 if n % 2 else 3.5 for n in range(len(ids))]
        earlier = [N] * len(ids)
        return pa.table({"case_id": ids, "faithful": scores, "sample_weight": weights, "sample_rows": earlier})

    made = estimate_assets(
        name="scores",
        gold="people",
        candidates=["verdicts"],
        key="case_id",
        target=Target("faithful", kappa_weights="quadratic", minimum=1, maximum=5),
        group_by="candidate",
    )
    project = Project(tmp_path, [verdicts, people, *made])
    project.run("verdicts", "people", "scores")
    [gap] = project.rows("scores", against="long")
    assert (gap["figure"], gap["naive"]) == ("mean", -1)
    assert gap["powered"] == pytest.approx(0, abs=0.15)
    assert gap["powered_low"] < 0 < gap["powered_high"]
    said = project.metadata("scores")["llm_batch/gold_drawn"].value
    assert said.startswith(f"with unequal probabilities: weighted. {N} rows of verdicts could not be drawn")


@pytest.mark.slow
def test_a_group_that_no_candidate_has_is_refused_and_one_without_gold_says_so(tmp_path):
    given = {"gold": "gold", "candidates": ["labels"], "key": "id", "target": "topic"}
    made = [
        *estimate_assets(name="wrong", group_by="region", **given),
        *estimate_assets(name="by_topic", group_by="id", **given),
    ]
    project = Project(tmp_path, [labels, gold, *made])
    project.run("labels", partition="mon")
    project.run("gold")
    assert "No candidate has the column 'region' that group_by= names" in failure(project.run("wrong", succeeds=False))
    project.run("by_topic")
    without = project.rows("by_topic", n_gold=0)
    assert without
    assert {row["gold_only"] for row in without} == {row["powered"] for row in without} == {None}
    assert {row["naive"] for row in without if row["figure"] == "share"} == {0, 1}


class Receipt(BaseModel):
    total: float | None = Field(ge=0, le=500)
    tip: float


@pytest.mark.parametrize(
    ("target", "ends"),
    [
        ("total", (0, 500)),
        (Target("total", kind="numeric", maximum=100), (0, 100)),
        (Target("tip", kind="numeric", minimum=0, maximum=20), (0, 20)),
    ],
)
def test_the_ends_of_a_number_are_those_of_its_target_or_else_of_the_response(target, ends):
    [found] = with_ends(targets_of(target, None, "numeric"), [Candidate("c", dg.AssetKey("c"), reader=Reader(Receipt))])
    assert (found.minimum, found.maximum) == ends


@pytest.mark.parametrize(
    ("schema", "ends"),
    [
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 6}, (1, 6)),
        ({"enum": [1, 2, 9]}, (1, 9)),
        ({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/stars"}]}, (1, 5)),
        ({"allOf": [{"type": "number", "minimum": 0}, {"maximum": 3}]}, (0, 3)),
        # As pydantic writes a Decimal from 0 to 10.
        ({"anyOf": [{"type": "number", "minimum": 0, "maximum": 10}, {"type": "string", "pattern": "^.*$"}]}, (0, 10)),
        ({"$ref": "#/$defs/stars", "maximum": 3}, (1, 3)),
    ],
)
def test_ends_are_found_in_any_form_of_a_json_schema(schema, ends):
    stars = {"type": "integer", "minimum": 1, "maximum": 5}
    response = {"type": "object", "properties": {"n": schema}, "required": ["n"], "$defs": {"stars": stars}}
    [found] = with_ends(targets_of("n", None, "numeric"), [Candidate("c", dg.AssetKey("c"), reader=Reader(response))])
    assert (found.minimum, found.maximum) == ends


@pytest.mark.parametrize("kind", ["numeric", "ordinal"])
def test_a_mean_without_ends_is_refused_when_definitions_load(kind):
    with pytest.raises(ConfigError, match=r"The mean of 'amount' has no interval without ends.*Declare"):
        estimate_assets(name="e", gold="gold", candidates=["labels"], key="id", target="amount", kind=kind)


def test_the_message_of_missing_ends_shows_which_end_was_found():
    receipts = [Candidate("c", dg.AssetKey("c"), reader=Reader(Receipt))]
    for target, said in (
        (
            Target("tip", kind="numeric", maximum=20),
            r"Found: maximum=20; missing: minimum=\. .*minimum=0, maximum=20\)",
        ),
        (Target("total", kind="numeric", minimum=0), None),
        (Target("tip", kind="numeric"), "Found: none; missing: minimum= and maximum="),
        (Target("tip", kappa_weights="linear", minimum=0), r'kappa_weights="linear", minimum=0, maximum=5\)'),
    ):
        if said is not None:
            with pytest.raises(ConfigError, match=said):
                with_ends([target], receipts)
        else:
            assert with_ends([target], receipts)[0].maximum == 500
    with pytest.raises(ConfigError, match="within ±1e"):
        Target("amount", kind="numeric", minimum=0, maximum=10**400)
    given = {"gold": "gold", "candidates": ["labels"], "key": "id"}
    assert estimate_assets(name="e", target=Target("amount", kind="numeric", minimum=0, maximum=1), **given)


def test_columns_that_arguments_name_beside_a_target_are_its_columns_or_are_refused():
    """Refuse other columns, which were once dropped silently."""
    topic, total = Target("topic"), Target("total", kind="numeric")
    found = targets_of([topic, total], {"topic": "right"}, {"total": "numeric"}, "sure")
    assert [(one.gold_column, one.confidence_column) for one in found] == [("right", "sure"), (None, None)]
    assert targets_of(Target("topic", gold_column="right"), "right", "categorical")[0].gold_column == "right"
    with pytest.raises(ConfigError, match=r"has gold_column='right', and gold_target= names 'other' for it"):
        targets_of(Target("topic", gold_column="right"), "other", "categorical")
    with pytest.raises(ConfigError, match="has confidence_column='sure', and confidence= names 'other'"):
        targets_of(Target("topic", confidence_column="sure"), None, "categorical", {"topic": "other"})
    with pytest.raises(ConfigError, match="kind= names 'topic' as ordinal, and its Target is categorical"):
        targets_of(topic, None, {"topic": "ordinal"})
