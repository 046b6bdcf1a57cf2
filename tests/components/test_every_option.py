"""A project that uses every option: Dagster's GraphQL shows the same for Python and for YAML."""

import inspect
import os
import subprocess
from pathlib import Path
from typing import Any

import every_option
import pytest
import yaml
from every_option import CASES, DAGSTERS, ONCE

import dagster_llm_batch
from tests.dagster.dagster_dev import dagster_dev, marked
from tests.dagster.published_package import CONSTRAINTS, uv

ASSETS = """
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
  }"""
BY_DAGSTER = ("dagster/code_references", "dagster/component_origin")
"""Metadata that Dagster adds to the assets of a component."""


@pytest.fixture
def project(tmp_path):
    """Create a project with `create-dagster`, with every option in YAML in its `defs`."""
    made = tmp_path / "every"
    create = ("tool", "run", "--quiet", "--constraints", str(CONSTRAINTS), "create-dagster")
    done = subprocess.run(
        [uv(), *create, "project", "--no-uv-sync", str(made)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    defs = made / "src" / "every" / "defs"
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
    return made


def by_key(data: list[dict[str, Any]]) -> dict[str, Any]:
    nodes = {}
    for node in data:
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
    ends = ("_assets", "_labels")
    factories = [getattr(dagster_llm_batch, name) for name in dagster_llm_batch.__all__ if name.endswith(ends)]
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
def test_a_real_dagster_dev_says_the_same_of_the_yaml_as_of_the_python(project, tmp_path):
    """Start a real Dagster with two code locations."""
    python = tmp_path / "in_python.py"
    python.write_text("from every_option import in_python as defs\n")
    made = project / "src" / "every" / "definitions.py"
    paths = os.pathsep.join([str(Path(every_option.__file__).parent), str(project / "src")])
    with dagster_dev(tmp_path, [python, made], {"PYTHONPATH": paths}) as running:
        running.until("both code locations", lambda: len(running.assets(ASSETS)) == 2)
        said = running.assets(ASSETS)
    assert marked(str(tmp_path)) == []
    in_python, in_yaml = by_key(said["in_python.py"]), by_key(said["definitions.py"])
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
