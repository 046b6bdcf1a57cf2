"""A project in which every option is used, in Python and in YAML: what Dagster's GraphQL says of both is the same."""

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import every_option
import pytest
import yaml
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import InProcessTestWorkspaceLoadTarget
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_graphql.test.utils import execute_dagster_graphql
from every_option import CASES, DAGSTERS, ONCE

import dagster_llm_batch
from tests.dagster.dagster_dev import dagster_dev, marked

PYPROJECT = """
[project]
name = "every"
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "every"
code_location_name = "every"
"""
ASSETS = """
{
  assetNodes {
    assetKey { path } groupName description kinds opVersion opNames jobNames pools hasAssetChecks
    owners { ... on TeamAssetOwner { team } }
    tags { key value }
    partitionDefinition { name type description }
    backfillPolicy { policyType maxPartitionsPerRun }
    automationCondition { label expandedLabel }
    dependencyKeys { path }
    requiredResources { resourceKey }
    internalFreshnessPolicy { ... on TimeWindowFreshnessPolicy { failWindowSeconds } }
    metadataEntries { label description ... on TextMetadataEntry { text } ... on JsonMetadataEntry { jsonString } }
    assetChecksOrError(limit: 9) { ... on AssetChecks { checks { name description blocking } } }
    targetingInstigators { ... on Sensor { name minIntervalSeconds } }
  }
}"""
BY_DAGSTER = ("dagster/code_references", "dagster/component_origin")
"""What Dagster adds to the assets of a component."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The folder of the YAML."""
    defs = tmp_path / "src" / "every" / "defs"
    for name, (_, component, same) in CASES.items():
        given = {"name": name, **DAGSTERS.yaml, **same.yaml, **(ONCE if name == "labels" else {})}
        document = {
            "type": f"dagster_llm_batch.{component}",
            "attributes": given,
            "template_vars_module": "every_option",
        }
        (defs / name).mkdir(parents=True)
        (defs / name / "defs.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (defs / "others.py").write_text(
        "import dagster as dg\nimport every_option\n\nothers = dg.definitions(every_option.others)\n"
    )
    (defs / "__init__.py").touch()
    (defs.parent / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    monkeypatch.setenv("EVERY_OPTION", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path / "src")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "every"]:
        del sys.modules[name]


def ask(instance: dg.DagsterInstance, location: str, query: str) -> Any:
    """What GraphQL says of a code location."""
    target = LoadableTargetOrigin(executable_path=sys.executable, python_file=every_option.__file__, attribute=location)
    origin = InProcessCodeLocationOrigin(target, location_name="every")
    with WorkspaceProcessContext(instance, InProcessTestWorkspaceLoadTarget(origin)) as process:
        context = process.create_request_context()
        [location_entry] = context.get_code_location_entries().values()
        assert location_entry.load_error is None, location_entry.load_error
        result = execute_dagster_graphql(context, query)
        assert not result.errors
        return result.data


def by_key(data: Any) -> dict[str, Any]:
    nodes = {}
    for node in data["assetNodes"]:
        node["tags"] = {tag["key"]: tag["value"] for tag in node["tags"]}
        node["metadataEntries"] = {
            entry["label"]: entry for entry in node["metadataEntries"] if entry["label"] not in BY_DAGSTER
        }
        nodes["/".join(node["assetKey"]["path"])] = {
            name: sorted(value, key=str) if isinstance(value, list) else value for name, value in node.items()
        }
    return nodes


def test_every_argument_of_every_factory_that_has_a_component_is_used():
    used: dict[Any, set[str]] = {}
    for factory, _, same in CASES.values():
        used.setdefault(factory, {"name"}).update(DAGSTERS.python, same.python)
    factories = [getattr(dagster_llm_batch, name) for name in dagster_llm_batch.__all__ if name.endswith("_assets")]
    assert set(used) == set(factories)
    assert used == {factory: set(inspect.signature(factory).parameters) for factory in factories}


def test_every_attribute_of_every_component_is_used():
    used: dict[str, set[str]] = {}
    for name, (_, component, same) in CASES.items():
        once = ONCE if name == "labels" else {}
        used.setdefault(component, {"name"}).update(DAGSTERS.yaml, same.yaml, once)
    every = {name: set(getattr(dagster_llm_batch, name).get_model_cls().model_fields) for name in used}
    assert used == every


@pytest.mark.slow
def test_a_real_dagster_dev_says_the_same_of_the_yaml_as_of_the_python(project):
    with dg.instance_for_test() as instance:
        in_python = by_key(ask(instance, "in_python", ASSETS))
    live = project / "live.py"
    live.write_text("from every_option import in_yaml as defs\n")
    paths = os.pathsep.join([str(Path(every_option.__file__).parent), str(project / "src")])
    with dagster_dev(project, live, {"EVERY_OPTION": str(project), "PYTHONPATH": paths}) as running:
        assert by_key(running.ask(ASSETS)) == in_python
    assert marked(str(project)) == []


def test_graphql_says_the_same_of_both(project):
    with dg.instance_for_test() as instance:
        in_python = by_key(ask(instance, "in_python", ASSETS))
        in_yaml = by_key(ask(instance, "in_yaml", ASSETS))
    assert set(in_python) == set(in_yaml)
    for key, node in in_python.items():
        assert in_yaml[key] == node, key
    ours = {key: node for key, node in in_python.items() if node["jobNames"]}
    assert len(ours) > len(CASES)
    for key, node in ours.items():
        assert (key.split("/")[0], node["groupName"], node["kinds"]) == ("crm", "every", ["snowflake", "table"])
        assert (node["owners"], node["tags"]["tier"]) == ([{"team": "ml"}], "gold")
        assert node["metadataEntries"]["of"]["text"] in key
    labels = in_python["crm/labels"]
    assert labels["tags"]["role"] == "labels"
    assert labels["targetingInstigators"] == [{"name": "lands", "minIntervalSeconds": 60}]
