"""The page about components is true: each of its YAML blocks loads, and its Python is a component."""

from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from yaml_project import labels, loaded

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "components.md"


def blocks(language):
    tokens = MarkdownIt().parse(PAGE.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def number(text):
    return f"line {PAGE.read_text(encoding='utf-8').split(text)[0].count(chr(10)) + 1}"


@pytest.mark.parametrize("text", blocks("yaml"), ids=number)
def test_each_yaml_block_loads_alone_or_in_the_least_dataset(text):
    for given in yaml.safe_load_all(text):
        whole = given  # or some attributes
        if "type" not in given:
            whole = {"type": "dagster_llm_batch.LLMBatchComponent", "attributes": labels(**given)}
        with loaded(yaml.safe_dump(whole, sort_keys=False)) as project:
            assert project.component.assets
            assert all(made.specs for made in project.defs.assets)


def test_the_python_of_the_page_is_a_component_of_ones_own():
    [source] = blocks("python")
    with loaded(labels(group_name="crm"), kind=".ours.OurLabels", files={"ours.py": source}) as project:
        assert project.spec("ticket_labels").tags["cost_center"] == "crm"


def test_the_page_has_blocks_of_no_other_language():
    """The commands are run by `tests/dagster/test_dg_project.py`."""
    tokens = MarkdownIt().parse(PAGE.read_text(encoding="utf-8"))
    assert {token.info for token in tokens if token.type == "fence"} == {"sh", "yaml", "python"}
