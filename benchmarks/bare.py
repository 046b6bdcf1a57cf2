"""Import this first, and the package comes without its Dagster face: the engine needs none of it.

The package's `__init__` imports Dagster; what that costs stands in the table of start-up and in that of Dagster runs.
"""

import importlib.util
import sys
import types

_spec = importlib.util.find_spec("dagster_llm_batch")
assert _spec is not None
assert "dagster_llm_batch" not in sys.modules
_package = types.ModuleType("dagster_llm_batch")
_package.__path__ = list(_spec.submodule_search_locations or ())
sys.modules["dagster_llm_batch"] = _package
