"""The page about components is true: each of its YAML blocks loads, and its Python is a component."""

from pathlib import Path

import dagster as dg
import pytest
import yaml
from markdown_it import MarkdownIt
from yaml_project import labels, loaded

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "components.md"
PARTITIONS = PAGE.with_name("partitions.md")


def blocks(language, page=PAGE):
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def number(text):
    return f"line {PAGE.read_text(encoding='utf-8').split(text)[0].count(chr(10)) + 1}"


@pytest.mark.parametrize("text", blocks("yaml"), ids=number)
def test_each_yaml_block_loads_alone_or_in_the_least_dataset(text):
    for given in yaml.safe_load_all(text):
        whole = given  # or only some attributes
        if "type" not in given:
            whole = {"type": "dagster_llm_batch.LLMBatchComponent", "attributes": labels(**given)}
        with loaded(yaml.safe_dump(whole, sort_keys=False)) as project:
            assert project.component.assets
            assert all(made.specs for made in project.defs.assets)


def test_the_yaml_of_the_page_about_partitions_is_of_a_dataset():
    [text] = blocks("yaml", PARTITIONS)
    with loaded(labels(**yaml.safe_load(text))) as project:
        [dep] = project.spec("ticket_labels_batch").deps
        assert (dep.partition_mapping, dep.metadata["repeated_keys"]) == (dg.TimeWindowPartitionMapping(), "last")


def test_the_yaml_of_the_page_about_a_csv_by_day_is_of_a_dataset():
    [text] = blocks("yaml", PAGE.with_name("partition-a-csv.md"))
    with loaded(labels(**yaml.safe_load(text))) as project:
        assert project.component.rows.partition_column == "day"
        assert project.spec("ticket_labels").partitions_def.get_partition_keys() == ["2026-01-01", "2026-01-02"]


def test_the_python_of_the_page_is_a_component_of_ones_own():
    source, _ = blocks("python")
    with loaded(labels(group_name="crm"), kind=".ours.OurLabels", files={"ours.py": source}) as project:
        assert project.spec("ticket_labels").tags["cost_center"] == "crm"


@pytest.mark.parametrize("freeze", [True, False])
def test_the_execute_of_the_page_decides_whether_anything_is_submitted(freeze):
    """Let the op run where `execute` does not prevent it. Then it fails, since the rows are missing."""
    _, source = blocks("python")
    attributes = labels(freeze=freeze, resource={"openai": {"api_key": "k"}})
    with dg.instance_for_test() as instance, loaded(attributes, ".ours.OurLabels", {"ours.py": source}) as project:
        job = project.defs.resolve_implicit_global_asset_job_def()
        job = job.get_subset(asset_selection={dg.AssetKey("ticket_labels_batch")})
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        assert result.success == freeze
        assert result.get_asset_materialization_events() == []
        failed = "" if freeze else str(result.get_step_failure_events()[0].step_failure_data.error)
        assert ("is not materialized" in failed) == (not freeze)


def test_the_page_has_blocks_of_no_other_language():
    """Leave commands to `tests/dagster/test_dg_project.py`, which runs them."""
    tokens = MarkdownIt().parse(PAGE.read_text(encoding="utf-8"))
    assert {token.info for token in tokens if token.type == "fence"} == {"sh", "yaml", "python"}
