"""The example's definitions load with each labeler, and wrong settings are refused in plain words."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "EXAMPLE_MODEL",
    "EXAMPLE_HOME",
    "EXAMPLE_ROWS_PER_DAY",
    "EXAMPLE_CASCADE_ROWS",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
)


def python(folder, *arguments, **settings):
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment = {**kept, "EXAMPLE_HOME": str(folder), "DAGSTER_HOME": str(folder), **settings}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"EXAMPLE_MODEL": "openai/gpt-5-nano", "OPENAI_API_KEY": "sk-emulator"}])
def test_dagster_validates_the_definitions(tmp_path, settings):
    begin(tmp_path, "cascade", "documents")
    validated = python(
        tmp_path, "-m", "dagster", "definitions", "validate", "-m", "example_project.definitions", **settings
    )
    assert validated.returncode == 0, validated.stdout + validated.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"EXAMPLE_MODEL": "gpt-5-nano"}, "EXAMPLE_MODEL='gpt-5-nano'"),
        ({"EXAMPLE_MODEL": "command/other"}, "command/smollm2 or command/vader"),
        ({"EXAMPLE_MODEL": "openai/gpt-5-nano"}, "needs OPENAI_API_KEY"),
        ({"EXAMPLE_ROWS_PER_DAY": "many"}, "EXAMPLE_ROWS_PER_DAY='many'"),
        ({"EXAMPLE_ROWS_PER_DAY": "0"}, "EXAMPLE_ROWS_PER_DAY='0'"),
        ({"EXAMPLE_CASCADE_ROWS": "some"}, "EXAMPLE_CASCADE_ROWS='some'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_starts(tmp_path, settings, said):
    refused = python(tmp_path, "-m", "example_project.cli", **settings)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "dagster.log").exists()


def test_one_command_answers_for_every_labeler_and_refuses_others(tmp_path):
    refused = python(tmp_path, "-m", "example_project.labelers", "--model", "other", "-i", "in", "-o", "out")
    assert refused.returncode == 2
    assert "smollm2" in refused.stderr


def test_a_cascade_of_the_lexicon_and_itself_is_refused_before_anything_starts(tmp_path):
    refused = python(tmp_path, "-m", "example_project.cli", "cascade", EXAMPLE_MODEL="command/vader")
    assert refused.returncode == 1
    assert "EXAMPLE_MODEL=command/vader is the cascade's cheap labeler already" in refused.stderr


KINDS = """
from example_project.definitions import defs

specs = defs.resolve_all_asset_specs()
print(sorted(spec.key.to_user_string() for spec in specs if "table" not in spec.kinds))
"""


@pytest.mark.slow
def test_all_assets_but_submissions_are_tables_in_dagsters_ui(tmp_path):
    begin(tmp_path, "cascade", "documents")
    told = python(tmp_path, "-c", KINDS)
    assert told.returncode == 0, told.stderr
    without = ast.literal_eval(told.stdout)
    assert [name for name in without if not name.endswith("_batch")] == []


ASSETS = """
import json
from example_project.definitions import defs

print(json.dumps(sorted(spec.key.to_user_string() for spec in defs.resolve_all_asset_specs())))
"""


def begin(folder, *commands):
    for command in commands:
        folder.joinpath("begun").mkdir(exist_ok=True)
        folder.joinpath("begun", command).touch()


@pytest.mark.slow
def test_the_assets_of_a_command_are_defined_once_it_was_started(tmp_path):
    """Before, Dagster's UI would show them as unfinished."""
    names = []
    for commands in ((), ("documents",), ("cascade",)):
        begin(tmp_path, *commands)
        told = python(tmp_path, "-c", ASSETS)
        assert told.returncode == 0, told.stderr
        names.append({*json.loads(told.stdout)})
    own = {"tweets", "sentiment_eval", "sentiment_shares", "tweets_to_label", "my_eval"}
    papers, cascade = {"papers", "invoices", "invoice_eval"}, {"cascade_tweets", "oracle_sentiment", "cascade_eval"}
    assert names[0] >= own
    assert not names[0] & (papers | cascade)
    assert names[1] >= own | papers
    assert not names[1] & cascade
    assert names[2] >= own | papers | cascade


LABELED = """
import dagster as dg, polars as pl
from datetime import UTC, datetime
from dagster_llm_batch.storage.ledger.records import Judgment
from example_project import definitions as ex

day = ex.data.DAYS[0].isoformat()
rows = ex.data.rated([day], 40)

def stored(name, label):
    @dg.asset(name=name, partitions_def=ex.daily)
    def produced():
        return rows.select("text_id", "text").with_columns(label=label)
    return produced

def rejected(name):
    @dg.asset(name=name, partitions_def=ex.daily)
    def produced():
        return rows.select("text_id").clear()
    return produced

labels = [
    stored("tweet_sentiment", rows["label"]), stored("tweet_sentiment_lexicon", pl.lit("neutral")),
    *map(rejected, ("tweet_sentiment_rejects", "tweet_sentiment_lexicon_rejects")),
]
ours = [*ex.tweets_to_label, *ex.my_gold, *ex.my_eval]
resources = {"llm_batch": ex.llm_batch, "io_manager": ex.defs.resources["io_manager"]}
with dg.DagsterInstance.get() as instance:
    def run(assets, *selected, **more):
        return dg.materialize(assets, selection=selected or None, instance=instance, resources=resources, **more)
    run(labels, partition_key=day)
    run([*labels, *ours], "tweets_to_label")
    proposed = dg.Definitions(assets=[*labels, *ours], resources=resources).load_asset_value(
        "tweets_to_label", instance=instance
    )
    said = dict(rows.select("text_id", "label").iter_rows())
    with dg.build_resources({"llm_batch": ex.llm_batch}, instance=instance) as built:
        engine = built.llm_batch.engine()
        for number, row in enumerate(proposed.to_dicts()):
            sample = {name: value for name, value in row.items() if name.startswith("sample_")}
            engine.ledger.judgments.add(
                Judgment(
                    form_id=str(number), namespace=engine.namespace, dataset="tweet_sentiment", partition=day,
                    row_key=str(row["text_id"]), annotator="you", kind="label", seconds=1.0, sample=sample,
                    answer={"label": said[row["text_id"]]}, at=datetime.now(UTC),
                )
            )
    assert run([*labels, *ours], "my_gold", "my_eval").success
    measured = dg.Definitions(assets=[*labels, *ours], resources=resources).load_asset_value(
        "my_eval", instance=instance
    )
print(dict(measured.select("candidate", "accuracy").iter_rows()))
"""


@pytest.mark.slow
def test_what_somebody_says_of_tweets_is_gold_and_measures_both_labelers(tmp_path):
    tmp_path.joinpath("dagster.yaml").write_text("telemetry: {enabled: false}\n")
    told = python(tmp_path, "-c", LABELED)
    assert told.returncode == 0, told.stderr
    assert "'tweet_sentiment': 1.0" in told.stdout
