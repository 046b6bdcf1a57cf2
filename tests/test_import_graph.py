"""Modules and folders of the package import each other in no circle. Its layers: `[tool.importlinter]`."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

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
