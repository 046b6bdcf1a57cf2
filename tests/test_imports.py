"""Each module below the Dagster layer can be the first one that a process imports.

It is the first one in a worker of Spark or Ray that unpickles a function.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import dagster_llm_batch

pytestmark = pytest.mark.slow

SCRIPT = """
import importlib, json, os, pkgutil, sys
import jinja2.sandbox, jsonschema, msgspec, numpy, pyarrow.parquet, pydantic, sqlalchemy, upath  # they take the time
import dagster_llm_batch

names = []
layers = "core distributed engine advice upkeep cascade loop files definition storage"
for layer in layers.split():
    package = importlib.import_module(f"dagster_llm_batch.{layer}")
    names += [one.name for one in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
wrong = {}
for name in names:
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            for one in [one for one in sys.modules if one.startswith("dagster_llm_batch.")]:
                del sys.modules[one]
            importlib.import_module(name)
        except ModuleNotFoundError as error:  # an extra that is not installed
            said = str(error) if str(error.name).startswith("dagster_llm_batch") else ""
        except Exception as error:
            said = repr(error)
        else:
            said = ""
        os.write(write, said.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.wait()
    if said:
        wrong[name] = said
print(json.dumps([names, wrong]))
"""


@pytest.mark.slow
def test_a_module_can_be_imported_first():
    """Import each module of the package in a process that has imported no other one."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    names, wrong = json.loads(done.stdout)
    assert wrong == {}
    assert "dagster_llm_batch.files.request_parts" in names


@pytest.mark.slow
def test_schemas_are_compared_by_one_module_alone_which_fetches_nothing() -> None:
    """Plain `jsonschema` fetches references, and runs patterns without an end."""
    package = Path(dagster_llm_batch.__file__).parent
    importing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if any(name.split(".")[0] in ("jsonschema", "referencing") for name in _imported(node))
    }
    assert importing == {"core/json_schema.py"}


def test_no_module_of_the_tests_hides_one_of_python_or_of_a_package() -> None:
    """Check this, since each of their folders comes to be on the path, and in front in processes that tests start."""
    tests = Path(__file__).parent
    taken = sys.stdlib_module_names | packages_distributions().keys()
    assert [str(path.relative_to(tests)) for path in tests.rglob("*.py") if path.stem in taken] == []


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
