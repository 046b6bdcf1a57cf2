"""Tweets labeled by the example's lexicon, as batches on the Slurm that SLURM_CONF points at.

labeling.py FOLDER      submits, waits, and prints the labels as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import LLMBatchResource, Prompt, SlurmBatchResource, llm_batch_assets
from example_project import prompt

TWEETS = [
    {"id": "a", "text": "I love this, what a wonderful day!"},
    {"id": "b", "text": "This is terrible and I hate it."},
    {"id": "c", "text": "Great, great, great!"},
    {"id": "d", "text": "The worst service of all, awful."},
    {"id": "e", "text": "Happy and thankful."},
]


class Sentiment(BaseModel):
    """What the lexicon answers."""

    label: Literal["positive", "negative", "neutral"]


def label(folder: Path) -> dict[str, str]:
    """Return labels by tweet. A later call does not repeat the requests of an earlier one."""
    labels = llm_batch_assets(
        name="labels",
        rows=lambda _: TWEETS,
        key="id",
        prompt=Prompt(system=prompt.SYSTEM, user=prompt.USER, examples=prompt.EXAMPLES),
        response=Sentiment,
        model="slurm/vader",
        mode="wait",
    )
    words = [sys.executable, "-m", "example_project.labelers", "--model", "{model}", "-i", "{input}", "-o", "{output}"]
    slurm = SlurmBatchResource(
        command=words,
        workdir=str(folder / "work"),
        python=sys.executable,
        requests_per_task=2,
        max_running_tasks=1,
        row_by_row=True,
        settle_seconds=1.0,
    )
    resource = LLMBatchResource(
        slurm=slurm,
        poll_seconds=0.3,
        ledger_url=f"sqlite:///{folder}/ledger.sqlite",
        payload_root=str(folder / "payloads"),
    )
    resources = {"llm_batch": resource, "io_manager": dg.FilesystemIOManager(base_dir=str(folder / "tables"))}
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize(labels, resources=resources, instance=instance).success
        table = dg.Definitions(assets=labels, resources=resources).load_asset_value("labels", instance=instance)
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


if __name__ == "__main__":
    print(json.dumps(label(Path(sys.argv[1]))))
