"""Import this first, and the process has what an engine needs and no more, as where nothing else is installed.

The package's `__init__` imports Dagster; what that costs stands in the table of start-up and in that of Dagster runs.
Arrow imports pandas where it is installed, as it is for the tests, which takes 0.3 CPU seconds and 60 MB. Neither the
floor nor the package needs it, so both are measured without.
"""

import importlib.util
import sys
import types
from importlib.abc import MetaPathFinder


class _Absent(MetaPathFinder):
    """Finds no pandas, nor lets others look for it."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Absent())
_spec = importlib.util.find_spec("dagster_llm_batch")
assert _spec is not None
assert "dagster_llm_batch" not in sys.modules
_package = types.ModuleType("dagster_llm_batch")
_package.__path__ = list(_spec.submodule_search_locations or ())
sys.modules["dagster_llm_batch"] = _package
