"""Modules and folders of the package import each other in no circle. Its layers: `[tool.importlinter]`."""

from __future__ import annotations

import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest


def test_modules_import_each_other_in_no_circle_not_even_when_they_are_called_or_for_their_types():
    graph = grimp.build_graph("dagster_llm_batch", exclude_type_checking_imports=False, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("room", ["providers", "testing"])
def test_the_folders_of_a_room_import_each_other_in_no_circle(room):
    """Vendors' folders import the shared modules, and these import no vendor: they find vendors in a registry."""
    graph = grimp.build_graph("dagster_llm_batch", exclude_type_checking_imports=True, cache_dir=None)
    inside = [module for module in graph.modules if module.startswith(f"dagster_llm_batch.{room}.")]
    folders = {module for module in inside if graph.find_children(module)}
    folder_of = {module: module if module in folders else module.rpartition(".")[0] for module in inside}
    imported: dict[str, set[str]] = {folder: set() for folder in folder_of.values()}
    for module in inside:
        found = {folder_of[other] for other in graph.find_modules_directly_imported_by(module) if other in folder_of}
        imported[folder_of[module]] |= found - {folder_of[module]}
    assert len(imported) > 1
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_contracts_name_each_folder_and_module_that_they_are_for():
    """A contract passes for a module that its lists lack, such as a new vendor or a new layer below Dagster."""
    config = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {one["name"]: one for one in config["tool"]["importlinter"]["contracts"]}
    graph = grimp.build_graph("dagster_llm_batch", cache_dir=None)
    providers = graph.find_children("dagster_llm_batch.providers")
    vendors = {one for one in providers if graph.find_children(one)} - {"dagster_llm_batch.providers.openai_api"}
    top = graph.find_children("dagster_llm_batch") - {"dagster_llm_batch._version"}
    layers = contracts["Arrows point down only"]["layers"]
    below_dagster = {name for layer in layers[layers.index("distributed") :] for name in layer.split(" : ")}

    shared = contracts["What vendors share knows none of them"]
    emulator = contracts["The emulator is a second reading of the vendors' documents"]
    assert set(contracts["Vendor folders do not know each other"]["modules"]) == vendors
    assert set(shared["forbidden_modules"]) == vendors
    assert set(shared["source_modules"]) == providers - vendors
    assert set(emulator["forbidden_modules"]) == top - {"dagster_llm_batch.testing"}
    assert set(contracts["Dagster is imported only in the Dagster face"]["source_modules"]) == {
        f"dagster_llm_batch.{name}" for name in below_dagster | {"testing"}
    }
