"""Imports need pyarrow and numpy; functions that compute or draw name their extra. Each test has a new interpreter."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from types import ModuleType

import pytest

from dagster_llm_batch import evaluation

HEAVY = ["scipy", "sklearn", "matplotlib", "krippendorff", "river"]


def run(code, *, without=()):
    hide = "".join(f"sys.modules[{name!r}] = None\n" for name in without)  # importing it raises ModuleNotFoundError
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{hide}{dedent(code)}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_works_without_any_of_the_optional_packages():
    run("import dagster_llm_batch.metrics", without=HEAVY)


def test_importing_loads_none_of_the_optional_packages():
    loaded = run(f"import dagster_llm_batch.metrics; print([n for n in {HEAVY} if n in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("without", "call"),
    [
        ("scipy", "evaluate(one)"),
        ("scipy", "agreement_between(one, one)"),
        ("krippendorff", "agreement_among(Labels.of(Target('t'), dict.fromkeys('ab', (ids, topics))), 'all')"),
        ("matplotlib", "confusion_png(Confusion('c', 't', ('a',), ((1,),), (0,)))"),
    ],
)
def test_a_missing_package_is_an_error_that_says_what_to_install(without, call):
    said = run(
        f"""
        import pyarrow as pa
        from dagster_llm_batch.errors import MissingExtraError
        from dagster_llm_batch.metrics import *
        table = pa.table({{"id": [1, 2], "t": ["a", "b"], "x": [0.5, 1.5]}})
        one = join(table, table, key="id", target="t", candidate_name="c")
        ids, topics = (table[name].combine_chunks() for name in ("id", "t"))
        number = join(table, table, key="id", target=Target("x", kind="numeric"), candidate_name="c")
        try:
            {call}
        except MissingExtraError as error:
            print(error)
        """,
        without=[without],
    )
    assert "pip install 'dagster-llm-batch[evaluation]'" in said


def test_the_online_detector_says_which_extra_it_needs():
    said = run(
        """
        from dagster_llm_batch.errors import MissingExtraError
        from dagster_llm_batch.metrics import adwin_changes
        try:
            adwin_changes({"mon": {"a": 1}})
        except MissingExtraError as error:
            print(error)
        """,
        without=["river"],
    )
    assert "pip install 'dagster-llm-batch[drift]'" in said


@pytest.mark.slow
def test_drawing_loads_no_pyplot():
    said = run(
        """
        from dagster_llm_batch.metrics import Confusion, confusion_png
        assert confusion_png(Confusion("c", "t", ("a",), ((1,),), (0,))).startswith(b"\\x89PNG")
        print("matplotlib.pyplot" in sys.modules)
        """
    )
    assert said.strip() == "False"


def test_the_public_names_are_those_promised():
    public = {name for name in vars(evaluation) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(evaluation, name), ModuleType)}
    assert public - modules - {"annotations"} == set(evaluation.__all__)
