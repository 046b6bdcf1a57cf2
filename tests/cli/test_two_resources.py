"""A code location with two resources: `--resource` chooses the resource whose datasets a command shows."""

import json
import sqlite3

import pytest

SECOND = """
        "second": LLMBatchResource(
            namespace="second",
            openai=OpenAIBatchResource(
                api_key=dg.EnvVar("OPENAI_API_KEY"), base_url=os.environ["OPENAI_BASE_URL"], timeout_seconds=10
            ),
            **places,
        ),
        "plain": """


@pytest.fixture
def second(project):
    """Make the usual project with one dataset on a second resource, and parameters that the provider rejects."""
    project.change(
        'asset_labels = llm_batch_assets(name="asset_labels", rows=tickets, **common)',
        'asset_labels = llm_batch_assets(name="asset_labels", rows=rows, resource_key="second", '
        '**{**common, "params": {"stream": True}})',
    )
    project.change('"plain": ', SECOND.strip())
    project.change(
        "[build_llm_batch_sensor()]", '[build_llm_batch_sensor(target="key:ticket_labels or key:daily_labels")]'
    )
    return project


def checks(project, resource, code=0):
    found = json.loads(project.on_file("doctor", "--json", "--resource", resource, code=code).stdout)["findings"]
    return {one["check"]: one for one in found}


def test_doctor_judges_the_datasets_of_the_resource_alone(second):
    found = checks(second, "llm_batch")
    assert "dataset asset_labels" not in found
    assert "asset_labels" not in found["definitions"]["said"]
    assert "asset_labels" not in found["sensor"]["said"]
    found = checks(second, "second", code=3)
    assert found["dataset asset_labels"]["verdict"] == "problem"
    assert "dataset ticket_labels" not in found
    assert "no sensor materializes the labels of asset_labels" in found["sensor"]["said"]


def test_plan_takes_the_datasets_of_the_resource_alone(second):
    planned = second.json("plan", "ticket_labels", "--resource", "llm_batch")["plans"]
    assert [one["asset"] for one in planned] == ["ticket_labels"]
    second.change('"params": {"stream": True}', '"params": {}')
    planned = second.json("plan", "--resource", "second")["plans"]
    assert [one["asset"] for one in planned] == ["asset_labels"]


def test_a_dataset_of_another_resource_is_refused_with_its_own(second):
    said = second.on_file("plan", "ticket_labels", "--resource", "second", code=2).stderr
    assert "'ticket_labels' is of the resource 'llm_batch', not of 'second': --resource llm_batch" in said


def test_doctor_leaves_what_another_resource_has_in_the_same_ledger_to_itself(second):
    second.change('namespace="second"', 'namespace="test"')
    second.change('"params": {"stream": True}', '"params": {}')
    second.submit("asset_labels")
    # The batches are in another account than the configured one.
    second.change(
        """namespace="test",
            openai=OpenAIBatchResource(
                api_key=dg.EnvVar("OPENAI_API_KEY")""",
        """namespace="test",
            openai=OpenAIBatchResource(
                organization="another", api_key=dg.EnvVar("OPENAI_API_KEY")""",
    )
    found = checks(second, "llm_batch")
    assert not found.keys() & {"assets", "accounts"}
    assert found["batches under way"]["said"].startswith("0 in flight")
    found = checks(second, "second", code=3)
    assert found["batches under way"]["said"].startswith("1 in flight")
    assert found["accounts"]["verdict"] == "problem"


@pytest.mark.slow
def test_list_and_watch_show_what_the_resource_has(second):
    second.change('namespace="second"', 'namespace="test"')
    second.change('"params": {"stream": True}', '"params": {}')
    for name in ("ticket_labels", "asset_labels"):
        second.submit(name)
    for resource, asset in (("llm_batch", "ticket_labels"), ("second", "asset_labels")):
        listed = second.json("list", "--resource", resource)
        assert ([one["asset"] for one in listed["submissions"]], listed["found"]) == ([asset], 1)
        watched = second.on_file("watch", "--once", "--resource", resource).stdout
        assert [name for name in ("ticket_labels", "asset_labels") if name in watched] == [asset]


def test_cost_sums_what_the_resource_has_in_the_same_ledger(second):
    second.change('namespace="second"', 'namespace="test"')
    second.change('"params": {"stream": True}', '"params": {}')
    for name in ("ticket_labels", "asset_labels"):
        second.submit(name)
    for resource, asset in (("llm_batch", "ticket_labels"), ("second", "asset_labels")):
        told = second.json("cost", "--resource", resource)
        assert [group["asset"] for group in told["groups"]] == [asset]
        assert told["total"]["requests"] == told["groups"][0]["requests"]


def test_cost_leaves_to_the_other_resource_what_its_skew_has_asked(second):
    second.change('namespace="second"', 'namespace="test"')
    second.change('"params": {"stream": True}', '"params": {}')
    second.submit("asset_labels")
    second.submit("ticket_labels")
    second.change(
        "defs = dg.Definitions(",
        "from dagster_llm_batch.evaluation import skew_assets\n\n"
        'skew = skew_assets(name="asset_skew", candidates=asset_labels, target="topic")\n'
        "defs = dg.Definitions(",
    )
    second.change("*daily_labels, *asset_labels],", "*daily_labels, *asset_labels, *skew],")
    with sqlite3.connect(second.ledger) as connection:
        # Like a run of the skew.
        connection.execute("update submission set asset = 'asset_skew' where asset = 'asset_labels'")
    connection.close()
    for resource, asset in (("llm_batch", "ticket_labels"), ("second", "asset_skew")):
        told = second.json("cost", "--resource", resource)
        assert [group["asset"] for group in told["groups"]] == [asset]


@pytest.mark.parametrize("command", ["doctor", "plan", "list"])
def test_definitions_that_dagster_cannot_load_are_a_clear_error(project, command):
    project.change(
        "defs = dg.Definitions(",
        'static = dg.StaticPartitionsDefinition(["de"])\n'
        'other = dg.asset(name="other", partitions_def=static)(lambda: None)\n'
        'both = dg.define_asset_job("both", selection=["other", "daily_labels"])\n'
        "defs = dg.Definitions(\n    jobs=[both],",
    )
    project.change("assets=[tickets,", "assets=[tickets, other,")
    said = project.on_file(command, code=1).stderr
    assert "Error: Definitions cannot be loaded from the file" in said
    assert "Traceback" not in said
    assert "same partitions" in said


def test_a_target_without_its_asset_is_a_clear_error(project):
    project.change("build_llm_batch_sensor()", 'build_llm_batch_sensor(target=dg.AssetKey("nothing"))')
    said = project.on_file("doctor", code=1).stderr
    assert "Definitions cannot be loaded" in said
    assert "nothing" in said
