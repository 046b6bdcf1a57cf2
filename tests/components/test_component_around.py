"""Monitoring of labels, in YAML: judges, agreement, drift, skew, proposals for gold, costs."""

import contextlib
import itertools
import re
from datetime import timedelta

import dagster as dg
import jsonschema
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox
from dagster.components.testing.test_cases import TestTranslation
from yaml_project import AROUND, BATCH, EVAL, THEIRS, around, evaluation, labels, loaded, refusal

import dagster_llm_batch
from dagster_llm_batch import LLMBatchComponent, Realtime, Resend
from tests.tables import table

EVERY = pytest.mark.parametrize("word", sorted(AROUND))
ALL_SAID = {
    "Agreement": {
        "target": [{"name": "urgency", "kappa_weights": "quadratic"}],
        "annotator": "person",
        "min_alpha": {"least": 0.6, "confidence": 0.9},
        "check_severity": "WARN",
    },
    "Annotation": {"method": "majority", "min_alpha": {"least": 0.6, "confidence": 0.9}, "min_seconds": 1},
    "Cost": {"candidates": {"mine": "ticket_labels"}, "resource_key": "llm_batch", "frame": "polars"},
    "Drift": {
        "reference": ["2026-01-01"],
        "max_psi": 0.1,
        "partitions_def": {"type": "daily", "start_date": "2026-01-01"},
        "blocking": True,
    },
    "Estimate": {"group_by": "body", "confidence": "sureness", "rejects": {"ticket_labels": "ticket_labels_rejects"}},
    "GoldSample": {
        "gold": "ticket_gold",
        "confidence": "sureness",
        "random_share": 0.5,
        "seed": 3,
        "stop": {"half_width": 0.02},
    },
    "PairwiseJudge": {
        "sample_size": 10,
        "max_inconsistent": 0.2,
        "prompt": {"system": "Be fair.", "user": "{{ answer_a }} {{ answer_b }}"},
        "params": {"max_tokens": 90},
        "max_cost_usd": 2,
        "resend": {"fallback": ["openai/gpt-5"]},
        "realtime": {"deadline": {"hours": 2}},
        "automation_condition": "{{ on_labels_ready() }}",
    },
    "RubricJudge": {
        "rubric": {
            "criteria": {"right": "Is it?"},
            "scale": [0, 10],
            "min_score": {"right": {"least": 7, "confidence": 0.9}},
        },
        "resend": {"max_waves": 2},
        "mode": "wait",
    },
    "Skew": {
        "sample_size": 5,
        "min_agreement": {"least": 0.9, "confidence": 0.95},
        "max_cost_usd": 1,
        "realtime": {"concurrency": 2},
        "automation_condition": "{{ on_labels_ready() }}",
    },
}


def keys(defs):
    return {one.key.to_user_string() for made in defs.assets for one in made.specs}


@EVERY
def test_what_the_python_api_says_can_be_said_in_yaml(word):
    given, kind = around(word, **ALL_SAID[word], group_name="crm", owners=["team:ml"])
    schema = getattr(dagster_llm_batch, f"LLMBatch{word}Component").get_model_cls().model_json_schema()
    jsonschema.Draft202012Validator(schema).validate(given)
    with loaded(given, kind, files=THEIRS) as project:
        spec = project.spec("watched")
        assert (spec.group_name, list(spec.owners)) == ("crm", ["team:ml"])


@pytest.mark.parametrize("word", ["Batch", "Evaluation", *sorted(AROUND)])
def test_dagsters_own_options_reach_specs_and_ops(word):
    given, kind = {
        "Batch": (labels(name="watched"), BATCH),
        "Evaluation": (evaluation(name="watched"), EVAL),
    }.get(word) or around(word)
    options = {
        "kinds": ["table", "snowflake"],
        "metadata": {"partition_expr": "day"},
        "code_version": "mine",
        "freshness_policy": "{{ dg.FreshnessPolicy.time_window(fail_window=datetime.timedelta(hours=30)) }}",
        "deps": [
            "crm/more",
            {
                "asset": "raw",
                "partition_mapping": "{{ AllPartitionMapping() }}",
                "metadata": {"allow_missing_partitions": True, "repeated_keys": "last"},
            },
        ],
        "automation_condition": None,
        "pool": "llm",
        "op_tags": {"dagster-k8s/config": {"container_config": {"resources": {"limits": {"memory": "8Gi"}}}}},
        "retry_policy": {"max_retries": 2, "delay": 60, "backoff": "EXPONENTIAL", "jitter": "FULL"},
    }
    with loaded({**given, **options}, kind, files=THEIRS) as project:
        spec = project.spec("watched")
        assert (spec.kinds, spec.metadata["partition_expr"]) == ({"table", "snowflake"}, "day")
        assert spec.code_version.endswith("-mine")
        assert spec.freshness_policy == dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=30))
        every = [one for made in project.defs.assets for one in made.specs]
        deps = {dep.asset_key.to_user_string(): dep.partition_mapping for one in every for dep in one.deps}
        assert (deps["crm/more"], deps["raw"]) == (None, dg.AllPartitionMapping())
        said = next(dict(dep.metadata) for one in every for dep in one.deps if dep.asset_key == dg.AssetKey("raw"))
        assert said == {"allow_missing_partitions": True, "repeated_keys": "last"}
        assert {one.automation_condition for one in every} == {None}
        ops = [made.op for made in project.defs.assets]
        assert all("8Gi" in str(op.tags["dagster-k8s/config"]) for op in ops)
        retries = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL)
        assert ("llm", retries) in {(op.pool, op.retry_policy) for op in ops}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"retry_policy": {"max_tries": 3}}, "there is no attribute 'max_tries'; did you mean 'max_retries'"),
        ({"deps": [{"asset": "raw", "partition_mapping": "all"}]}, "partition_mapping='all' is text"),
        ({"kinds": "table"}, "kinds='table'"),
        ({"freshness_policy": "30h"}, "freshness_policy='30h' is text"),
    ],
)
def test_a_wrong_option_is_refused_at_its_line(option, message):
    given, kind = around("Agreement", **option)
    assert message in refusal(given, kind, files=THEIRS)


def test_a_judge_is_a_labeled_dataset_with_all_its_settings():
    given, kind = around("PairwiseJudge", **ALL_SAID["PairwiseJudge"])
    with loaded(given, kind) as project:
        wanted = {"watched", "watched_cases", "watched_verdicts", "watched_verdicts_batch", "watched_verdicts_rejects"}
        assert keys(project.defs) == wanted
        assert project.spec("watched_verdicts_batch").automation_condition is not None
        dataset = dagster_llm_batch.assets.dataset.dataset_of(project.component.assets)
        assert dataset.labeling.max_cost_usd == 2
        assert dataset.labeling.realtime == Realtime(deadline=timedelta(hours=2))
        assert dataset.labeling.resend == Resend(fallback=["openai/gpt-5"])
        assert "Be fair." in dataset.labeling.prompt.system
        checks = {one.name for made in project.component.assets for one in made.check_specs}
        assert {"consistency", "coverage"} <= checks


@table(
    ("word", "changes", "message"),
    [
        ("Agreement", {"min_alpha": 7}, "alpha is between -1 and 1"),
        ("Drift", {"target": []}, "name at least one column"),
        ("Drift", {"max_psi": 0}, "PSI is 0 for equal shares"),
        ("GoldSample", {"sample_size": 0}, "sample_size=0"),
        ("GoldSample", {"random_share": 0}, "random_share=0"),
        ("GoldSample", {"stop": {"half_width": 2}}, "half_width=2"),
        ("PairwiseJudge", {"candidates": ["small"]}, "a comparison needs two or more"),
        ("PairwiseJudge", {"max_inconsistent": 20}, "a share is between 0 and 1"),
        ("PairwiseJudge", {"prompt": "{{ body }}"}, "does not show answer_a, answer_b."),
        ("PairwiseJudge", {"model": "gpt-5"}, "names no provider"),
        ("PairwiseJudge", {"max_cost_usd": -1}, "is no amount of US dollars"),
        ("RubricJudge", {"rubric": {"criteria": {"reason": "x"}}}, "none named 'reason'"),
        ("RubricJudge", {"rubric": {"criteria": {"right": "?"}, "min_score": {"kind": 3}}}, "the criteria are right"),
        ("RubricJudge", {"rubric": {"criteria": {"right": "?"}, "scale": [1]}}, "scale"),
        ("Skew", {"target": "no"}, "there is no column 'no'"),
        ("Skew", {"min_agreement": 90}, "a share is between 0 and 1"),
        ("Skew", {"candidates": "others"}, "'others' is no labeled dataset in this project's YAML; it has: none"),
        ("Skew", {"candidates": ".theirs.Label"}, "give what llm_batch_assets returned"),
        ("Skew", {"candidates": ".theirs.no"}, "has no 'no'"),
    ],
)
def test_what_cannot_work_is_refused_at_its_line(word, changes, message):
    given, kind = around(word, **changes)
    said = refusal(given, kind, files=THEIRS)
    assert message in said
    lines = yaml.safe_dump({"type": kind, "attributes": given}, sort_keys=False).splitlines()
    [attribute] = changes
    first = next(number for number, one in enumerate(lines) if one.startswith(f"  {attribute}:"))
    # the attribute's own line, or one of the block below it
    after = itertools.takewhile(lambda one: one.startswith(("    ", "  - ")), lines[first + 1 :])
    [told] = {int(line) for line in re.findall(r"things/defs.yaml:(\d+)\b", said)}
    assert first + 1 <= told <= first + 1 + len(list(after)), said


@EVERY
class TestTranslationOfThem(TestTranslation):
    """Dagster's own cases."""

    def test_translation(self, attributes, assertion, key_modifier, word):
        given, kind = around(word, translation=attributes)
        refused = {"Cost": "costs are summed by the time of sending", "Skew": "follows from the asset's inputs"}
        if "partitions_def" in attributes and word in refused:
            assert refused[word] in refusal(given, kind, files=THEIRS)
            return
        with loaded(given, kind, files=THEIRS) as project:
            key = dg.AssetKey("watched") if key_modifier is None else key_modifier(dg.AssetKey("watched"))
            assert assertion(project.spec(key.to_user_string()))


@contextlib.contextmanager
def shop():
    """Yield a project with the scaffolded dataset, and a function that scaffolds more components into it."""
    with create_defs_folder_sandbox() as sandbox:

        def scaffold(component, name):
            path = sandbox.scaffold_component(component_cls=component, defs_path=name)
            return yaml.safe_load((path / "defs.yaml").read_text())["attributes"]

        yield sandbox, scaffold


@EVERY
def test_what_is_scaffolded_is_valid_and_is_about_the_labels_of_the_project(word):
    with shop() as (sandbox, scaffold):
        scaffold(LLMBatchComponent, "ticket_topics")
        given = scaffold(getattr(dagster_llm_batch, f"LLMBatch{word}Component"), "watched")
        assert "ticket_topics" in str(given)
        with sandbox.build_all_defs() as defs:
            assert dg.AssetKey("watched") in defs.resolve_asset_graph().get_all_asset_keys()


@pytest.mark.slow
def test_what_is_scaffolded_runs_as_it_is_beside_the_scaffolded_labels():
    words = ("Agreement", "Cost", "GoldSample", "Skew")
    with shop() as (sandbox, scaffold), dg.instance_for_test() as instance:
        scaffold(LLMBatchComponent, "ticket_labels")
        for word in words:
            scaffold(getattr(dagster_llm_batch, f"LLMBatch{word}Component"), word.lower())
        with sandbox.build_all_defs() as defs:
            assert defs.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance).success
            load = defs.get_repository_def().load_asset_value
            [figures] = load(dg.AssetKey("skew"), instance=instance).to_pylist()
            assert (figures["n_compared"], figures["agreement"]) == (3, 1)
            assert len(load(dg.AssetKey("skew_sample"), instance=instance)) == 3
            assert {one["alpha"] for one in load(dg.AssetKey("agreement"), instance=instance).to_pylist()} == {1}
            assert len(load(dg.AssetKey("goldsample"), instance=instance)) == 3
            assert load(dg.AssetKey("cost"), instance=instance)["asset"].to_pylist() == ["ticket_labels"]


@pytest.mark.slow
def test_labels_of_another_file_are_found_by_their_key_and_errors_name_those_that_there_are():
    with create_defs_folder_sandbox() as sandbox:
        for folder, attributes, kind in (
            ("crm", labels(name="ticket_labels", key_prefix="crm"), "dagster_llm_batch.LLMBatchComponent"),
            ("watch", *around("Skew", candidates="crm/ticket_labels", target="reply")),
        ):
            path = sandbox.defs_folder_path / folder
            path.mkdir(parents=True)
            (path / "defs.yaml").write_text(yaml.safe_dump({"type": kind, "attributes": attributes}))
        with pytest.raises(Exception, match="Error while") as refused, sandbox.build_all_defs():
            pass
        said, cause = "", refused.value
        while cause is not None:
            said, cause = f"{said}\n{cause}", cause.__cause__
        assert "there is no column 'reply'" in said
