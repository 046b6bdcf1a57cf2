"""The import graph of the package: modules import each other in no circle. Its layers: `[tool.importlinter]`."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest


def test_modules_import_each_other_in_no_circle_not_even_when_they_are_called():
    graph = grimp.build_graph("dagster_llm_batch", exclude_type_checking_imports=True, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    # Prices by the book are rates, and what makes them is loaded when the first is asked for: it takes a while.
    imported["dagster_llm_batch.core.pricing"].discard("dagster_llm_batch.core.price_book")
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
