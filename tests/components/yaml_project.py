"""A project's `defs` folder, filled from YAML and loaded as Dagster loads it."""

import contextlib
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster.components.testing import create_defs_folder_sandbox

LABELS = {
    "name": "ticket_labels",
    "rows": "tickets",
    "key": "ticket_id",
    "prompt": "Label {{ subject }}: {{ body }}",
    "model": "openai/gpt-4o",
    "params": {"max_tokens": 50},
}
"""The least attributes of a labeled dataset with free text."""
EVALUATION = {
    "name": "ticket_eval",
    "gold": "ticket_gold",
    "candidates": ["ticket_labels"],
    "key": "ticket_id",
    "target": "topic",
}
AROUND: dict[str, dict[str, Any]] = {
    "Agreement": {"gold": "ticket_gold", "candidates": ["ticket_labels"], "key": "ticket_id", "target": "topic"},
    "Annotation": {"candidates": ".theirs.ticket_labels", "target": "topic"},
    "Cost": {"candidates": ["ticket_labels"]},
    "Drift": {"candidates": ["ticket_labels"], "target": "topic"},
    "Estimate": {"gold": "ticket_gold", "candidates": ["ticket_labels"], "key": "ticket_id", "target": "topic"},
    "GoldSample": {"candidates": ["ticket_labels"], "key": "ticket_id", "target": "topic", "sample_size": 2},
    "PairwiseJudge": {
        "rows": "tickets",
        "candidates": ["small", "large"],
        "key": "ticket_id",
        "target": "topic",
        "prompt": "{{ body }} {{ answer_a }} {{ answer_b }}",
        "model": "openai/gpt-4o",
    },
    "RubricJudge": {
        "rows": "tickets",
        "candidates": ["small"],
        "key": "ticket_id",
        "target": "topic",
        "rubric": {"criteria": {"right": "Is it?"}},
        "prompt": "{{ body }} {{ answer }}",
        "model": "openai/gpt-4o",
    },
    "Skew": {"candidates": ".theirs.ticket_labels", "target": "topic"},
}
"""The least attributes of the other components, by the word in their names."""
THEIRS = {
    "theirs.py": """
    from typing import Literal
    from pydantic import BaseModel
    from dagster_llm_batch import Prompt, llm_batch_assets

    class Label(BaseModel):
        topic: Literal["billing", "bug"]

    ticket_labels = llm_batch_assets(
        name="ticket_labels", rows="tickets", key="ticket_id", prompt=Prompt(user="{{ body }}"), response=Label,
        model="openai/gpt-4o",
    )
    """
}
"""A labeled dataset in Python, for components that read one."""
BATCH = "dagster_llm_batch.LLMBatchComponent"
EVAL = "dagster_llm_batch.LLMBatchEvaluationComponent"


@dataclass
class Project:
    """Folder and definitions of one component."""

    component: Any
    defs: dg.Definitions
    folder: Path

    def spec(self, name: str) -> dg.AssetSpec:
        key = dg.AssetKey.from_user_string(name)
        [spec] = [one for made in self.defs.assets for one in made.specs if one.key == key]
        return spec


@contextlib.contextmanager
def loaded(
    text: str | Mapping[str, Any], kind: str = BATCH, files: Mapping[str, str] | None = None, folder: str = "things"
) -> Iterator[Project]:
    """Yield the component of a `defs.yaml` with this text, or with these attributes."""
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.defs_folder_path / folder
        path.mkdir(parents=True)
        if isinstance(text, Mapping):
            text = yaml.safe_dump({"type": kind, "attributes": dict(text)}, sort_keys=False)
        (path / "defs.yaml").write_text(textwrap.dedent(text), encoding="utf-8")
        for name, content in (files or {}).items():
            (path / name).write_text(textwrap.dedent(content), encoding="utf-8")
        with sandbox.load_component_and_build_defs(defs_path=path) as (component, defs):
            yield Project(component, defs, path)


def refusal(text: str | Mapping[str, Any], kind: str = BATCH, files: Mapping[str, str] | None = None) -> str:
    """Return the messages of the error of loading, and of its causes."""
    try:
        with loaded(text, kind, files):
            pass
    except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
        said, cause = [], error
        while cause is not None:
            said.append(str(cause))
            cause = cause.__cause__
        return "\n".join(said)
    raise AssertionError("It loads.")


def around(word: str, **changes: Any) -> tuple[dict[str, Any], str]:
    """Return attributes and type of one of the other components."""
    given = {"name": "watched", **AROUND[word], **changes}
    return given, f"dagster_llm_batch.LLMBatch{word}Component"


def labels(**changes: Any) -> dict[str, Any]:
    return {**LABELS, **changes}


def evaluation(**changes: Any) -> dict[str, Any]:
    return {**EVALUATION, **changes}
