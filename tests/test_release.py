"""Versions in the documents equal the declared, pinned, tested and kept ones."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import dagster_llm_batch
from dagster_llm_batch.storage.ledger.migrations import LATEST
from example_project import bootstrap
from tests.golden import kept_stores

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = (ROOT / "docs" / "reference" / "support.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def _first_cells():
    table = SUPPORT.partition("## Versions")[2].partition("\n## ")[0]
    return [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]


def _versions(name):
    return sorted(
        {found for cell in _first_cells() if name in cell for found in re.findall(r"\d[\d.]*\d", cell)},
        key=lambda version: [int(part) for part in version.split(".")],
    )


def test_the_pythons_of_the_page_are_those_of_the_workflow_and_of_the_classifiers():
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    said = _versions("Python")
    assert said == [word.rpartition(" ")[2] for word in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", word)]
    if workflow.exists():  # the tests of the wheel have no hidden folders
        assert said == sorted(set(re.findall(r"\b3\.1\d\b", workflow.read_text(encoding="utf-8"))))


def test_the_pythons_that_install_are_those_that_the_example_and_the_tests_start_on():
    (major, oldest), (_, newest) = bootstrap.OLDEST, bootstrap.NEWEST
    assert PROJECT["requires-python"] == f">={major}.{oldest},<{major}.{newest + 1}"


def test_the_dagsters_of_the_page_are_the_lowest_that_installs_and_the_pinned_one():
    [pinned] = re.findall(
        r"^dagster==(\S+)", (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    [lowest] = [found[1] for line in PROJECT["dependencies"] if (found := re.match(r"dagster>=([\d.]+)", line))]
    assert _versions("Dagster") == [f"{lowest}.0", pinned]


def test_the_changelog_has_this_version_with_its_schema_of_the_ledger_and_names_the_schema_of_now():
    [version, *_], section = (
        re.findall(r"^## \[(\d[\d.]*)\]", CHANGELOG, re.MULTILINE),
        CHANGELOG.partition("\n## [0")[2],
    )
    assert version == dagster_llm_batch.__version__
    [released] = re.findall(r"schema version (\d+)", section)
    assert f"{version} has {released}" in SUPPORT
    # An unreleased version may have a newer one.
    newest, *_ = re.findall(r"schema version (\d+)", CHANGELOG)
    assert int(newest) == LATEST


def test_of_every_release_of_the_changelog_a_store_is_kept():
    assert {*re.findall(r"^## \[(\d[\d.]*)\]", CHANGELOG, re.MULTILINE), "before"} == set(kept_stores.names())
