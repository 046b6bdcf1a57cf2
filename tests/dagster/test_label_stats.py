"""Statistics of labels are counted part by part, in little memory."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from dagster_llm_batch.core.label_join import REJECT_COLUMNS, Labeled
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.label_stats import LabelStats


def counted() -> LabelStats:
    """Return statistics of rows of three models, of a row without a model, and of a row without tokens."""
    asked = Labeling(asset="a", model="openai/own", key="id", prompt=Prompt(user="{{ text }}"), response=None)
    who = {"llm_provider": ["openai", "openai", "other", None, "openai"], "llm_model": ["own", "b", "own", None, "own"]}
    tokens = {f"llm_{name}": [1, 2, 4, 8, None] for name in ("input_tokens", "output_tokens", "cache_read_tokens")}
    texts = {
        name: pa.nulls(5, pa.string()) for name in (*REJECT_COLUMNS, *asked.reader.schema.names) if name not in tokens
    }
    table = pa.table({"id": [*"vwxyz"], **texts, **who, **tokens})
    stats = LabelStats(asked)
    stats.add(Labeled(table, table.slice(0, 0)))
    return stats


def test_tokens_are_counted_by_who_answered() -> None:
    found = {who: tokens["input_tokens"] for who, tokens in counted().usage.items()}
    assert found == {("openai", "own"): 9, ("openai", "b"): 2, ("other", "own"): 4}


@pytest.mark.slow
def test_to_count_loads_no_engine_of_queries() -> None:
    code = "import sys; from test_label_stats import counted; counted(); print('pyarrow.acero' in sys.modules)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {__file__.rpartition('/')[0]!r}); {code}"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["False"]
