"""Components run: scaffolded ones unchanged, and a dataset in YAML through the sensor to its labels."""

import contextlib
import shutil
import textwrap
from pathlib import Path

import dagster as dg
import duckdb
import pyarrow as pa
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox
from yaml_project import THEIRS, labels, loaded, refusal

from dagster_llm_batch import (
    LLMBatchComponent,
    LLMBatchEvaluationComponent,
    LLMBatchGatheredLabelsComponent,
    LLMBatchSkewComponent,
)
from dagster_llm_batch.components.templates import labeler
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply

TYPES = {
    LLMBatchComponent: "dagster_llm_batch.LLMBatchComponent",
    LLMBatchEvaluationComponent: "dagster_llm_batch.LLMBatchEvaluationComponent",
}


@contextlib.contextmanager
def project():
    with create_defs_folder_sandbox() as sandbox:

        def scaffold(component, name, **params):
            path = sandbox.scaffold_component(component_cls=component, defs_path=name, scaffold_params=params or None)
            [document] = yaml.safe_load_all((path / "defs.yaml").read_text())
            return document

        yield sandbox, scaffold


def run(defs, instance, *names, succeeds=True, **where):
    keys = {dg.AssetKey.from_user_string(name) for name in names}
    job = defs.resolve_implicit_global_asset_job_def()
    job = job.get_subset(asset_selection=keys) if keys else job
    result = job.execute_in_process(instance=instance, **where)
    assert result.success is succeeds
    return result


def stored(defs, instance, name, **where) -> pa.Table:
    return defs.get_repository_def().load_asset_value(dg.AssetKey(name), instance=instance, **where)


def test_what_the_scaffolder_writes_runs_as_it_is_from_rows_to_an_evaluation():
    with project() as (sandbox, scaffold), dg.instance_for_test() as instance:
        scaffold(LLMBatchComponent, "ticket_labels")
        scaffold(LLMBatchEvaluationComponent, "ticket_eval")
        with sandbox.build_all_defs() as defs:
            result = run(defs, instance)
            assert all(check.passed for check in result.get_asset_check_evaluations())
            assert stored(defs, instance, "ticket_labels")["topic"].to_pylist() == ["billing", "bug", "how_to"]
            [figures] = stored(defs, instance, "ticket_eval").to_pylist()
            assert (figures["coverage"], figures["accuracy"]) == (1, 1)
            assert [one.name for one in defs.sensors] == ["llm_batch_sensor"]


EXECUTED = """
from dataclasses import dataclass
import dagster as dg
from dagster_llm_batch import (
    LLMBatchComponent,
    LLMBatchEvaluationComponent,
    LLMBatchGatheredLabelsComponent,
    LLMBatchSkewComponent,
)

class Watched:
    def execute(self, context, op):
        mine = next(iter(context.selected_asset_keys))
        yield dg.AssetObservation(mine, metadata={"role": op.role})
        yield from super().execute(context, op)

@dataclass(kw_only=True)
class Labels(Watched, LLMBatchComponent):
    pass

@dataclass(kw_only=True)
class Evaluation(Watched, LLMBatchEvaluationComponent):
    pass

@dataclass(kw_only=True)
class Skew(Watched, LLMBatchSkewComponent):
    pass
"""


def observed(result):
    events = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
    observations = [event.asset_observation_data.asset_observation for event in events]
    return {(one.asset_key.to_user_string(), one.metadata["role"].value) for one in observations}


@pytest.mark.slow
def test_execute_of_a_subclass_runs_every_op_and_what_the_op_does_by_itself():
    with project() as (sandbox, scaffold), dg.instance_for_test() as instance:
        scaffold(LLMBatchComponent, "ticket_labels")
        scaffold(LLMBatchEvaluationComponent, "ticket_eval")
        scaffold(LLMBatchSkewComponent, "ticket_skew")
        for folder, ours in (("ticket_labels", "Labels"), ("ticket_eval", "Evaluation"), ("ticket_skew", "Skew")):
            path = sandbox.defs_folder_path / folder
            (path / "ours.py").write_text(EXECUTED)
            [document, *others] = yaml.safe_load_all((path / "defs.yaml").read_text())
            (path / "defs.yaml").write_text(yaml.safe_dump_all([{**document, "type": f".ours.{ours}"}, *others]))
        with sandbox.build_all_defs() as defs:
            config = {"ops": {"ticket_labels_batch": {"config": {"again": True}}}}
            result = run(defs, instance, run_config=config)
            roles = dict(observed(result))
            assert roles.pop("ticket_labels_batch") == "batch"
            assert {role for name, role in roles.items() if name.startswith("ticket_labels")} == {"labels"}
            assert {role for name, role in roles.items() if "labels" not in name} == {"evaluation"}
            assert all(check.passed for check in result.get_asset_check_evaluations())
            assert stored(defs, instance, "ticket_labels")["topic"].to_pylist() == ["billing", "bug", "how_to"]
            assert len(stored(defs, instance, "ticket_skew_sample")) == 3


@pytest.mark.slow
def test_a_second_dataset_is_scaffolded_into_the_same_project_and_shares_its_resource():
    with project() as (sandbox, scaffold), dg.instance_for_test() as instance:
        first = scaffold(LLMBatchComponent, "first")
        second = scaffold(LLMBatchComponent, "crm/second-one")
        assert "resource" in first["attributes"]
        assert "resource" not in second["attributes"]
        assert second["attributes"]["name"] == "second_one"
        with sandbox.build_all_defs() as defs:
            run(defs, instance)
            assert len(stored(defs, instance, "second_one")) == 3


def test_two_resources_under_one_key_are_refused_by_that_key():
    with project() as (sandbox, scaffold):
        scaffold(LLMBatchComponent, "first")
        shutil.copytree(sandbox.defs_folder_path / "first", sandbox.defs_folder_path / "second")
        with pytest.raises(Exception, match="Error while building") as refused, sandbox.build_all_defs():
            pass
        assert "different resources with same key 'llm_batch'" in str(refused.value.__cause__)


def test_a_provider_that_the_project_does_not_have_is_refused_with_what_to_do():
    with project() as (_, scaffold):
        scaffold(LLMBatchComponent, "first")
        with pytest.raises(Exception, match=r"has no provider 'openai'; it has: command. Add it there first"):
            scaffold(LLMBatchComponent, "second", provider="openai")


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini", "vertex", "bedrock", "ray", "slurm"])
def test_a_scaffolded_vendor_takes_its_settings_from_variables_that_the_yaml_names(provider, monkeypatch):
    with project() as (sandbox, scaffold):
        document = scaffold(LLMBatchComponent, "ticket_labels", provider=provider)
        settings = document["attributes"]["resource"][provider]
        names = document["requirements"]["env"]
        command = settings.pop("command", None)
        assert (command is not None) == (provider == "slurm")
        assert {f"{{{{ env.{name} }}}}" for name in names} == set(settings.values())
        with sandbox.load_component_and_build_defs(sandbox.defs_folder_path / "ticket_labels") as (component, _):
            assert component.llm.startswith(f"{provider}/")
            assert component.max_cost_usd == (None if provider in ("ray", "slurm") else 1)
            for name in names:
                monkeypatch.setenv(name, "us-central1")
            found = getattr(component.resource, provider)
            assert {getattr(found, one).get_value() for one in settings} == {"us-central1"}
            assert getattr(found, "command", None) == command


def test_the_scaffolder_takes_a_model_and_never_overwrites_a_file():
    with project() as (sandbox, scaffold):
        folder = sandbox.defs_folder_path / "ticket_labels"
        folder.mkdir()
        (folder / "rows.py").write_text("mine = 1\n")
        document = scaffold(LLMBatchComponent, "ticket_labels", provider="openai", model="gpt-5")
        assert document["attributes"]["model"] == "openai/gpt-5"
        assert (folder / "rows.py").read_text() == "mine = 1\n"


def test_a_resource_that_is_a_template_is_left_to_the_project():
    with project() as (sandbox, scaffold):
        path = sandbox.scaffold_component(component_cls=LLMBatchComponent, defs_path="first") / "defs.yaml"
        document = yaml.safe_load(path.read_text())
        document["attributes"]["resource"] = "{{ shared_llm }}"
        path.write_text(yaml.safe_dump(document))
        assert scaffold(LLMBatchComponent, "second", provider="openai")["attributes"]["model"] == "openai/gpt-5-nano"


IN_PYTHON = """
import sys

import dagster as dg
from dagster_llm_batch import CommandBatchResource, LLMBatchResource, build_llm_batch_sensor

command = [sys.executable, "{labeler}", "{{input}}", "{{output}}"]

@dg.definitions
def shared():
    return dg.Definitions(resources={{"{key}": LLMBatchResource({settings})}}{more})
"""


def in_python(sandbox, *, key="llm_batch", settings="command=CommandBatchResource(command=command)", more=""):
    """Write a project's resource in Python, as a file of its `defs`."""
    text = IN_PYTHON.format(labeler=Path(labeler.__file__).resolve(), key=key, settings=settings, more=more)
    (sandbox.defs_folder_path / "resources.py").write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["llm_batch", "models"])
def test_a_dataset_is_scaffolded_into_a_project_whose_resource_is_in_python(key):
    with project() as (sandbox, scaffold), dg.instance_for_test() as instance:
        in_python(sandbox, key=key)
        attributes = scaffold(LLMBatchComponent, "ticket_labels")["attributes"]
        assert "resource" not in attributes
        assert attributes["model"] == "command/keywords"
        folder = sandbox.defs_folder_path / "ticket_labels"
        assert {path.name for path in folder.iterdir()} == {"defs.yaml", "prompt.md.j2", "rows.py", "schema.py"}
        with sandbox.build_all_defs() as defs:
            run(defs, instance)
            assert stored(defs, instance, "ticket_labels")["topic"].to_pylist() == ["billing", "bug", "how_to"]
            # labels of other providers need a sensor too
            assert [one.name for one in defs.sensors] == ["llm_batch_sensor"]


def test_a_sensor_in_python_is_not_scaffolded_again():
    with project() as (sandbox, scaffold):
        in_python(sandbox, more=", sensors=[build_llm_batch_sensor()]")
        assert "sensor" not in scaffold(LLMBatchComponent, "ticket_labels")["attributes"]
        with sandbox.build_all_defs() as defs:
            assert [one.name for one in defs.sensors] == ["llm_batch_sensor"]


def test_a_provider_that_the_resource_in_python_does_not_have_or_does_not_tell_is_refused():
    with project() as (sandbox, scaffold):
        in_python(sandbox)
        with pytest.raises(Exception, match=r"LLMBatchResource in resources.py has no provider 'openai'; it has: comm"):
            scaffold(LLMBatchComponent, "first", provider="openai")
        in_python(sandbox, settings="**settings")
        with pytest.raises(Exception, match=r"LLMBatchResource in resources.py from its definition. .* --provider"):
            scaffold(LLMBatchComponent, "first")
        assert scaffold(LLMBatchComponent, "first", provider="gemini")["attributes"]["model"].startswith("gemini/")


def test_a_dataset_is_scaffolded_for_a_provider_under_the_name_that_the_project_gave_it():
    with project() as (sandbox, scaffold):
        in_python(sandbox, settings="providers={'eu': dagster_llm_batch.AnthropicBatchResource(api_key='k')}")
        attributes = scaffold(LLMBatchComponent, "first", provider="anthropic")["attributes"]
        assert (attributes["model"], attributes["params"]) == ("eu/claude-haiku-4-5", {"max_tokens": 1000})
        in_python(sandbox, settings="providers={'az': preset('azure', base_url='https://r/v1', api_key='k')}")
        assert scaffold(LLMBatchComponent, "preset")["attributes"]["model"] == "az/gpt-5-nano"
        in_python(sandbox, settings="providers={**more}")
        with pytest.raises(Exception, match=r"in resources.py from its definition"):
            scaffold(LLMBatchComponent, "second")
    with project() as (sandbox, scaffold):
        path = sandbox.scaffold_component(component_cls=LLMBatchComponent, defs_path="first") / "defs.yaml"
        document = yaml.safe_load(path.read_text())
        document["attributes"]["resource"] = {"providers": {"us": {"kind": "groq", "api_key": "k"}}}
        path.write_text(yaml.safe_dump(document))
        assert scaffold(LLMBatchComponent, "second")["attributes"]["model"] == "us/gpt-5-nano"


def test_an_evaluation_of_labels_of_ones_own_leaves_no_example_behind():
    response = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    with project() as (sandbox, scaffold):
        in_python(sandbox)
        folder = sandbox.defs_folder_path / "moods"
        folder.mkdir()
        given = labels(name="moods", rows="comments", key="comment_id", response=response)
        (folder / "defs.yaml").write_text(yaml.safe_dump({"type": TYPES[LLMBatchComponent], "attributes": given}))
        attributes = scaffold(LLMBatchEvaluationComponent, "mood_eval")["attributes"]
        assert {name: attributes[name] for name in ("candidates", "key", "target")} == {
            "candidates": ["moods"],
            "key": "comment_id",
            "target": "mood",
        }
        assert not list(sandbox.project_root.rglob("ticket_gold.py"))
        with sandbox.build_all_defs() as defs:
            assert dg.AssetKey("mood_eval") in defs.resolve_asset_graph().get_all_asset_keys()


WAREHOUSE = """
import dagster as dg
from dagster_duckdb import DuckDBResource

@dg.definitions
def warehouse():
    return dg.Definitions(resources={{"warehouse": DuckDBResource(database="{database}")}})
"""


@pytest.mark.slow
def test_rows_by_a_query_in_yaml_are_labeled_by_partition(tmp_path):
    database = str(tmp_path / "tickets.duckdb")
    with duckdb.connect(database) as connection:
        connection.execute("create table tickets (ticket_id int, subject text, body text, day text)")
        connection.execute("insert into tickets values (1, 'A', 'refund', 'mon'), (2, 'B', 'crash', 'tue')")
    with project() as (sandbox, scaffold), dg.instance_for_test() as instance:
        in_python(sandbox)
        (sandbox.defs_folder_path / "warehouse.py").write_text(WAREHOUSE.format(database=database))
        scaffold(LLMBatchComponent, "ticket_labels")
        path = sandbox.defs_folder_path / "ticket_labels" / "defs.yaml"
        document = yaml.safe_load(path.read_text())
        document["attributes"] |= {
            "rows": {"sql": "select * from tickets where day = $partition_key", "resource": "warehouse"},
            "partitions_def": {"type": "static", "partition_keys": ["mon", "tue"]},
        }
        path.write_text(yaml.safe_dump(document))
        with sandbox.build_all_defs() as defs:
            for day, topic in (("mon", "billing"), ("tue", "bug")):
                run(defs, instance, partition_key=day)
                table = stored(defs, instance, "ticket_labels", partition_key=day)
                assert table["topic"].to_pylist() == [topic]


def test_a_scaffold_can_be_appended_to_a_yaml_file_and_in_python():
    from dagster.components.component_scaffolding import scaffold_object

    with project() as (sandbox, scaffold):
        scaffold(LLMBatchComponent, "ticket_labels")
        path = sandbox.defs_folder_path / "ticket_labels" / "defs.yaml"
        scaffold_object(path, TYPES[LLMBatchEvaluationComponent], None, "yaml", sandbox.project_root, append=True)
        with sandbox.build_all_defs() as defs:
            assert dg.AssetKey("ticket_labels_eval") in defs.resolve_asset_graph().get_all_asset_keys()
        python = sandbox.defs_folder_path / "in_python"
        scaffold_object(python, TYPES[LLMBatchComponent], None, "python", sandbox.project_root)
        assert "-> LLMBatchComponent" in (python / "component.py").read_text()


def test_the_scaffolded_labeler_goes_by_keywords():
    assert labeler.label("I was CHARGED twice") == {"topic": "billing"}
    assert labeler.label("It ends in a crash") == {"topic": "bug"}
    assert labeler.label("How do I begin?") == {"topic": "how_to"}


@pytest.mark.slow
def test_a_partitioned_dataset_in_yaml_goes_through_the_sensor_to_its_labels(monkeypatch):
    text = """
    type: dagster_llm_batch.LLMBatchComponent
    attributes:
      name: ticket_labels
      rows: {function: .rows.tickets}
      key: ticket_id
      prompt: "{{ subject }}: {{ body }}"
      response:
        type: object
        properties: {topic: {type: string, enum: [billing, bug, how_to]}}
        required: [topic]
        additionalProperties: false
      model: openai/gpt-4o
      params: {max_tokens: 50}
      max_cost_usd: 0.0021
      spend: {limit: hard}
      partitions_def: {type: daily, start_date: "2026-01-01", end_date: "2026-01-04"}
      resource:
        openai: {api_key: "{{ env.OPENAI_API_KEY }}", base_url: "{{ env.OPENAI_BASE_URL }}"}
    """
    rows = """
    import pyarrow as pa

    def tickets(context):
        day = context.partition_key
        return pa.table({"ticket_id": [f"{day}-1"], "subject": ["Invoice"], "body": [f"Where is it, {day}?"]})
    """

    def answer(body, endpoint):
        return Reply(
            text="no" if "2026-01-03" in str(body) else '{"topic": "bug"}', input_tokens=1_300, output_tokens=50
        )

    with (
        Emulator(answer=answer) as emulator,
        dg.instance_for_test() as instance,
        loaded(text, files={"rows.py": rows}) as one,
    ):
        monkeypatch.setenv("OPENAI_API_KEY", DEFAULT_KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", emulator.openai_base_url)
        assert one.component.spend.limit == "hard"
        run(one.defs, instance, "ticket_labels_batch", partition_key="2026-01-02")
        emulator.settle()
        repository = one.defs.get_repository_def()
        with dg.build_sensor_context(
            instance=instance,
            instance_ref=instance.get_ref(),
            repository_def=repository,
            sensor_name="llm_batch_sensor",
            resources=one.defs.resources,
        ) as context:
            [request] = repository.get_sensor_def("llm_batch_sensor").evaluate_tick(context).run_requests
        assert request.partition_key == "2026-01-02"
        landing = [key.to_user_string() for key in request.asset_selection]
        run(one.defs, instance, *landing, partition_key=request.partition_key)
        table = stored(one.defs, instance, "ticket_labels", partition_key="2026-01-02")
        assert table["ticket_id"].to_pylist() == ["2026-01-02-1"]
        assert table["topic"][0].as_py() == "bug"
        # Rows left out because of a budget are reported as in Python.
        run(one.defs, instance, "ticket_labels_batch", partition_key="2026-01-03")
        emulator.settle()
        landed = run(one.defs, instance, *landing, partition_key="2026-01-03", succeeds=False, raise_on_error=False)
        [coverage] = [check for check in landed.get_asset_check_evaluations() if check.check_name == "coverage"]
        assert not coverage.passed
        assert "Abandoned for money: 1 requests are not sent: max_cost_usd=0.0021 has $0.0002" in coverage.description


@pytest.mark.slow
def test_a_dataset_in_yaml_is_tuned_where_its_resource_says_so(monkeypatch):
    rows = """
    import pyarrow as pa

    def tickets(_context):
        return pa.table({"ticket_id": ["1"], "subject": ["Invoice"], "body": ["Where is it?"]})
    """
    address = {"api_key": "{{ env.OPENAI_API_KEY }}", "base_url": "{{ env.OPENAI_BASE_URL }}"}
    for tune in (True, False):
        attributes = labels(rows={"function": ".rows.tickets"}, resource={"openai": address, "tune": tune})
        with (
            Emulator() as emulator,
            dg.instance_for_test() as instance,
            loaded(attributes, files={"rows.py": rows}) as one,
        ):
            monkeypatch.setenv("OPENAI_API_KEY", DEFAULT_KEY)
            monkeypatch.setenv("OPENAI_BASE_URL", emulator.openai_base_url)
            run(one.defs, instance, "ticket_labels_batch")
            sent = instance.get_latest_materialization_event(dg.AssetKey("ticket_labels_batch"))
            told = sent.asset_materialization.metadata.get("llm_batch/tuning")
            assert (told is not None) == tune
            assert not tune or "all batches at once: too few days" in told.value


@pytest.mark.slow
def test_parts_in_yaml_are_gathered_by_what_is_scaffolded_beside_them(monkeypatch):
    rows = """
    from dagster_llm_batch import Split, split_rows

    def reports(_context):
        rows = [{"report": "r-1", "text": "# Board\\nAnn came.\\n# Sales\\nBob came.\\n"}]
        return split_rows(rows, Split("text", tokens=500), key="report")
    """
    attributes = {
        "name": "people_in_parts",
        "rows": {"function": ".rows.reports"},
        "key": "part_key",
        "keep": ["part", "parts", "part_start", "report"],
        "prompt": "{{ text }}",
        "model": "openai/gpt-4o",
        "params": {"max_tokens": 50},
        "resource": {"openai": {"api_key": DEFAULT_KEY, "base_url": "{{ env('OPENAI_BASE_URL') }}"}},
    }

    def answer(body, _endpoint):
        return Reply(text="Ann" if "Ann" in str(body) else "Bob")

    with Emulator(answer=answer) as emulator, dg.instance_for_test() as instance, project() as (sandbox, scaffold):
        monkeypatch.setenv("OPENAI_BASE_URL", emulator.openai_base_url)
        with pytest.raises(Exception, match="no labeled dataset of parts in YAML"):
            scaffold(LLMBatchGatheredLabelsComponent, "too_early")
        folder = sandbox.defs_folder_path / "people_in_parts"
        folder.mkdir(parents=True)
        document = {"type": TYPES[LLMBatchComponent], "attributes": attributes}
        (folder / "defs.yaml").write_text(yaml.safe_dump(document))
        (folder / "rows.py").write_text(textwrap.dedent(rows))
        shutil.rmtree(sandbox.defs_folder_path / "too_early", ignore_errors=True)
        written = scaffold(LLMBatchGatheredLabelsComponent, "people")["attributes"]
        assert written == {
            "name": "people",
            "labels": "people_in_parts",
            "key": "report",
            "gather": {"way": "concat"},
        }
        with sandbox.build_all_defs() as defs:
            run(defs, instance, "people_in_parts_batch")
            emulator.settle()
            run(defs, instance, "people_in_parts", "people_in_parts_rejects", "people", "people_rejects")
            [row] = stored(defs, instance, "people").to_pylist()
            assert (row["report"], row["text"], row["llm_outcome"]) == ("r-1", "Ann\nBob", "succeeded")
            assert row["llm_cost_usd"] == sum(part["llm_cost_usd"] for part in row["llm_parts"]) > 0
            assert len(stored(defs, instance, "people_rejects")) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": "absent"}, "'absent' is no labeled dataset in this project's YAML"),
        ({"labels": ".theirs.ticket_labels"}, "To gather its parts it needs key='part_key'"),
        ({"gather": {"way": "sum"}}, "way"),
        ({"gather": "union"}, "gather='union' is text"),
    ],
)
def test_a_gathering_that_cannot_work_is_refused_when_its_yaml_loads(changes, said):
    given = {"name": "people", "labels": ".theirs.ticket_labels", "key": "ticket_id", "gather": {"way": "union"}}
    assert said in refusal({**given, **changes}, "dagster_llm_batch.LLMBatchGatheredLabelsComponent", THEIRS)
