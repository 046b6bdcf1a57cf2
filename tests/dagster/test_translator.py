"""A translator changes specs from Python, and everything follows the new asset keys: runs, checks, sensor, costs."""

from typing import Any

import dagster as dg
import polars as pl
import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, LANDING, CodeLocation, failure, labeled, observations, tickets
from dagster._core.code_pointer import CodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from evaluation_project import DAYS as WEEK
from evaluation_project import TRUTH, EvaluationProject, source
from test_batch_sensor import tick
from test_dagster_options import FACTORIES, loaded, made, specs
from test_judge_assets import LONG, PROMPT, QUESTIONS, SHORT, judge, table

from dagster_llm_batch import (
    LLMBatchTranslator,
    LLMBatchTranslatorData,
    Rubric,
    cost_assets,
    drift_assets,
    evaluation_assets,
    pairwise_judge_assets,
)
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import Emulator


class Gold(LLMBatchTranslator):
    """Changes the prefix, groups by role, and adds an owner, a tag and a kind."""

    def __init__(self) -> None:
        self.seen: list[LLMBatchTranslatorData] = []

    def get_asset_spec(self, data: LLMBatchTranslatorData) -> dg.AssetSpec:
        spec = super().get_asset_spec(data)
        self.seen.append(data)
        moved = spec.replace_attributes(
            key=["gold", *spec.key.path], group_name=data.role, owners=["team:gold"], kinds={"snowflake"}
        )
        return moved.merge_attributes(tags={"tier": "gold"})


class Other(LLMBatchTranslator):
    """Returns the spec that it was made with."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def get_asset_spec(self, data: LLMBatchTranslatorData) -> Any:
        return self.spec(data.spec) if callable(self.spec) else self.spec


ROLES = {
    "llm_batch_assets": {"made": "labels", "made_batch": "batch", "made_rejects": "rejects"},
    "evaluation_assets": {
        "made": "evaluation",
        **{f"made_{role}": role for role in ("mistakes", "failures", "per_class", "versions", "accepted")},
    },
    "agreement_assets": {"made": "evaluation", "made_pairs": "pairs"},
    "annotation_assets": {"made": "annotation", "made_raters": "raters"},
    "drift_assets": {"made": "evaluation", "made_shares": "shares"},
    "estimate_assets": {"made": "evaluation"},
    "gold_sample_assets": {"made": "evaluation"},
    "cost_assets": {"made": "evaluation"},
    "skew_assets": {"made": "evaluation", "made_sample": "sample"},
    "gathered_labels": {"made": "gathered", "made_rejects": "rejects"},
    "student_assets": {"made": "student", "made_labels": "labels"},
    "kafka_assets": {"made": "messages", "made_rejects": "rejects"},
    "kafka_sink_asset": {"made": "sink"},
    "stream_dashboard_asset": {"made": "evaluation"},
}
JUDGE = {
    "made": "evaluation",
    "made_cases": "cases",
    "made_verdicts": "labels",
    "made_verdicts_batch": "batch",
    "made_verdicts_rejects": "rejects",
}
LIMITS: dict[str, dict[str, Any]] = {
    "evaluation_assets": {"min_accuracy": 0.5},
    "agreement_assets": {"min_alpha": 0.5},
    "pairwise_judge_assets": {"max_inconsistent": 0.5},
    "rubric_judge_assets": {"rubric": Rubric({"right": "Is it?"}, min_score=2)},
    "skew_assets": {"min_agreement": 0.5},
}
"""Arguments that make a check."""


@pytest.mark.parametrize("factory", FACTORIES)
def test_specs_of_every_factory_are_translated_and_their_checks_and_deps_follow(factory):
    translator = Gold()
    plain = made(factory, deps=(), **LIMITS.get(factory, {}))
    definitions = made(factory, deps=(), translator=translator, **LIMITS.get(factory, {}))
    graph = loaded(factory, definitions).resolve_asset_graph()
    roles = {data.spec.key.path[-1]: data.role for data in translator.seen}
    assert roles == ROLES.get(factory, JUDGE)
    assert {data.dataset for data in translator.seen} <= {"crm/made", "crm/made_verdicts"}
    before, after = specs(plain), specs(definitions)
    assert set(after) == {f"gold/{name}" for name in before}
    for name, spec in before.items():
        node = graph.get(after[f"gold/{name}"].key)
        assert (node.group_name, node.owners, node.kinds) == (roles[name.split("/")[-1]], ["team:gold"], {"snowflake"})
        assert node.tags["tier"] == "gold"
        assert node.description == spec.description
        # assets of the same factory are read under their new keys
        parents = {dep.asset_key.to_user_string() for dep in spec.deps}
        moved = {f"gold/{parent}" if parent in before else parent for parent in parents}
        assert {key.to_user_string() for key in node.parent_keys} == moved
    checks = {check.key for definition in definitions for check in definition.check_specs}
    expected = {check.key for definition in plain for check in definition.check_specs}
    assert {(check.asset_key.to_user_string(), check.name) for check in checks} == {
        (f"gold/{check.asset_key.to_user_string()}", check.name) for check in expected
    }
    assert bool(checks) == (
        factory in {*LIMITS, "llm_batch_assets", "drift_assets", "cost_assets", "annotation_assets"}
    )


@pytest.mark.slow
def test_an_added_translator_asks_nothing_again_and_the_sensor_lands_under_the_new_key(make, emulator):
    before = make(*labeled(partitions_def=DAILY))
    assert before.submit(partition=DAYS[0]).success
    location = make(
        *labeled(partitions_def=DAILY, translator=Gold()), *cost_assets(name="costs", candidates=[f"gold/{LABELS}"])
    )
    early = location.run(*(f"gold/{name}" for name in LANDING), partition=DAYS[0])
    assert [seen.asset_key.to_user_string() for seen in observations(early)] == [f"gold/{LABELS}"]
    emulator.settle()
    [request] = tick(location).run_requests
    assert [key.to_user_string() for key in request.asset_selection] == [f"gold/{name}" for name in LANDING]
    landing = location.launch(request)
    assert landing.success
    assert location.landed(f"gold/{LABELS}") == {DAYS[0]}
    assert {check.asset_key.to_user_string() for check in landing.get_asset_check_evaluations()} == {f"gold/{LABELS}"}
    assert tick(location).run_requests == []
    again = location.run(f"gold/{BATCH}", partition=DAYS[0])
    assert again.success
    assert emulator.books.creates_seen == 1
    assert location.run("costs").success
    rows = location.defs.load_asset_value("costs", instance=location.instance).to_pylist()
    assert [(row["asset"], row["open_requests"]) for row in rows] == [(LABELS, 0)]
    assert rows[0]["requests"] == 3


@pytest.mark.slow
def test_labels_that_are_translated_are_evaluated_and_accepted_under_translated_keys(make):
    labels = labeled(translator=Gold(), rows=lambda _: tickets(3))

    @dg.asset
    def truth() -> pl.DataFrame:
        return pl.DataFrame({"ticket_id": [f"t-{n}" for n in range(3)], "topic": ["billing"] * 3})

    evaluation = evaluation_assets(
        name="eval",
        gold=truth,
        candidates=[labels],
        key="ticket_id",
        target="topic",
        min_accuracy=0.0,
        regression=True,
        translator=Gold(),
    )
    location = make(*labels, truth, *evaluation)
    assert location.run(f"gold/{BATCH}").success
    location.emulator.settle()
    assert location.run(*(f"gold/{name}" for name in LANDING), "truth").success
    config = {"ops": {"gold__eval_accepted": {"config": {"candidates": [LABELS]}}}}
    result = location.run(
        "gold/eval", "gold/eval_mistakes", "gold/eval_versions", "gold/eval_accepted", run_config=config
    )
    assert result.success
    assert location.metadata("gold/eval_accepted")["llm_batch/accepted_now"] == LABELS
    checks = {(check.asset_key.to_user_string(), check.check_name) for check in result.get_asset_check_evaluations()}
    assert checks == {("gold/eval", "accuracy"), ("gold/eval", "gold_fits"), ("gold/eval", "regression")}
    again = location.run("gold/eval", "gold/eval_versions")
    assert again.success
    assert "llm_batch/accepted_by" in location.metadata("gold/eval_versions")


def test_a_judge_reads_its_cases_and_verdicts_under_translated_keys(instance):
    duel = pairwise_judge_assets(
        name="duel",
        rows="questions",
        candidates=["short", "long"],
        key="id",
        target="answer",
        prompt=PROMPT,
        model="openai/gpt-4o",
        params={"max_tokens": 50},
        translator=Gold(),
    )
    tables = [table(QUESTIONS, "questions", column="question"), table(SHORT, "short"), table(LONG, "long")]
    with Emulator(answer=judge) as emulator:
        location = CodeLocation(emulator, instance, *tables, *duel)
        assert location.run("questions", "short", "long", "gold/duel_cases").success
        assert location.run("gold/duel_verdicts_batch").success
        emulator.settle()
        assert location.run("gold/duel_verdicts", "gold/duel_verdicts_rejects", "gold/duel").success
    [pair] = location.defs.load_asset_value(dg.AssetKey(["gold", "duel"]), instance=location.instance).to_pylist()
    assert (pair["n_rows"], pair["n_identical"]) == (4, 1)
    engine = location.engine()
    assert {one.asset for one in engine.ledger.submissions.list_all(engine.namespace)} == {"duel_verdicts"}
    engine.ledger.close()


def test_partitions_are_computed_each_by_itself_under_translated_keys(tmp_path):
    project = EvaluationProject(tmp_path)
    labels = source("labels", TRUTH)
    drift = drift_assets(name="drift", candidates=["labels"], target="topic", partitions_def=WEEK, translator=Gold())
    project.fill([labels], *WEEK.get_partition_keys())
    result = project.run([labels, *drift], select=drift, between=("mon", "wed"))
    assert project.partitions(["gold", "drift"]) == {"mon", "tue", "wed"}
    assert {check.asset_key for check in result.get_asset_check_evaluations()} == {dg.AssetKey(["gold", "drift"])}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            None,
            r"translator=Other: the spec of ticket_labels_batch \(role 'batch'\) became a NoneType. Return an AssetS",
        ),
        (
            lambda spec: spec.replace_attributes(partitions_def=DAILY),
            "got other partitions: .* Give partitions_def= to",
        ),
        (lambda spec: spec.replace_attributes(key="x"), "got the key x, which belongs to an asset it reads"),
    ],
)
def test_what_cannot_work_is_refused_when_definitions_load(spec, message):
    with pytest.raises(ConfigError, match=message):
        labeled(translator=Other(spec))


def test_a_class_in_the_place_of_a_translator_is_refused_with_what_is_taken():
    with pytest.raises(ConfigError, match=r"translator=.* is not allowed; it takes LLMBatchTranslator or None"):
        labeled(translator=Gold)


def test_marks_that_the_sensor_goes_by_outlive_a_translator_that_starts_afresh(make, emulator):
    afresh = Other(lambda spec: dg.AssetSpec(["x", *spec.key.path], deps=spec.deps))
    location = make(*labeled(translator=afresh))
    assert location.run(f"x/{BATCH}").success
    assert location.run(*(f"x/{name}" for name in LANDING)).success  # too early, and green
    emulator.settle()
    [request] = tick(location).run_requests
    assert location.launch(request).success
    assert location.landed(f"x/{LABELS}") == set()
    assert location.metadata(f"x/{LABELS}")["dagster/partition_row_count"] == 3


def test_two_datasets_of_one_name_in_the_ledger_are_refused_by_the_sensor(make):
    message = "gold/ticket_labels and ticket_labels are both declared as ticket_labels"
    with pytest.raises(Exception, match=message):
        make(*labeled(), *labeled(translator=Gold())).tick()


TWINS = """
import dagster as dg
from code_location import BATCH, labeled
from test_translator import Gold

from dagster_llm_batch import LLMBatchResource

job = dg.define_asset_job("submit", [f"gold/{BATCH}"])
assets = [*labeled(), *labeled(translator=Gold())]
defs = dg.Definitions(assets, jobs=[job], resources={"llm_batch": LLMBatchResource()}, executor=dg.in_process_executor)
"""
"""A code location with two datasets of one name."""


def test_two_datasets_of_one_name_in_the_ledger_are_refused_in_the_run_too_before_rows_are_read(stored, tmp_path):
    file = tmp_path / "twins.py"
    file.write_text(TWINS)
    pointer = CodePointer.from_python_file(str(file), "defs", None)
    with dg.execute_job(ReconstructableRepository(pointer).get_reconstructable_job("submit"), stored) as result:
        assert not result.success
        assert "are both declared as ticket_labels" in failure(result)


def test_the_tags_by_which_costs_are_summed_are_the_users_and_those_of_a_translator() -> None:
    def tags(**options: Any) -> Any:
        return dataset_of(labeled(tags={"team": "support", "dagster/priority": "3"}, **options)).labeling.tags

    assert tags() == {"team": "support"}
    assert tags(translator=Gold()) == {"team": "support", "tier": "gold"}
