"""Examples for fine-tuning contain questions and answers in each vendor's form, with the origin of each."""

from __future__ import annotations

import json
from typing import Literal

import polars as pl
import pytest
from pydantic import BaseModel

from dagster_llm_batch.core.fixed_responses import Embedding
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.exports import fine_tuning, write_examples
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, RowFault


class Label(BaseModel):
    topic: Literal["billing", "bug"]


ROWS = pl.DataFrame({"id": ["a", "b", "c", "d"], "body": ["Charged\u2028twice", "White page", "White page", "Hm"]})
PROMPT = Prompt(system="You label tickets.", user="{{ body }}", examples=[("Hello?", '{"topic":"bug"}')])
LABELING = Labeling(asset="tickets", model="openai/gpt-4o", key="id", prompt=PROMPT, response=Label)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Return the labels of ROWS: "Hm" failed, and b and c are one request."""
    folder = tmp_path_factory.mktemp("deployment")
    with Emulator() as emulator:
        emulator.inject(RowFault(containing="Hm", status_code=400))
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
        engine = Engine(
            Deployment({"openai": provider}, Ledger(folder / "l.sqlite"), PayloadStore(str(folder / "p")), "test")
        )
        submission = engine.plan(LABELING, ROWS)
        engine.submit(LABELING, submission.submission_id)
        emulator.settle()
        assert engine.advance(LABELING, submission.submission_id).is_settled
        return engine.labels(LABELING, submission.submission_id, run_id="run-1").labels


def lines(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_openais_form_is_a_conversation_with_the_answer_at_its_end(labels, tmp_path):
    assert write_examples(fine_tuning(LABELING, ROWS, labels), tmp_path / "train.jsonl") == 2
    [first, second] = lines(tmp_path / "train.jsonl")
    assert set(first) == {"messages"}
    assert [turn["role"] for turn in first["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn["content"] for turn in first["messages"]][:4] == [
        "You label tickets.", "Hello?", '{"topic":"bug"}', "Charged\u2028twice",
    ]  # fmt: skip
    answers = [json.loads(one["messages"][-1]["content"]) for one in (first, second)]
    assert [answer["topic"] for answer in answers] == labels["topic"].to_pylist()[:2]


def test_anthropics_form_has_the_system_text_beside_turns_that_alternate(labels, tmp_path):
    write_examples(fine_tuning(LABELING, ROWS, labels, "anthropic"), tmp_path / "train.jsonl")
    for example in lines(tmp_path / "train.jsonl"):
        assert set(example) == {"system", "messages"}
        assert example["system"] == "You label tickets."
        assert [turn["role"] for turn in example["messages"]] == ["user", "assistant", "user", "assistant"]


def test_each_line_has_its_origin_on_the_same_line_of_the_file_beside_it(labels, tmp_path):
    write_examples(fine_tuning(LABELING, ROWS, labels), tmp_path / "train.jsonl")
    origins = lines(tmp_path / "train.provenance.jsonl")
    assert [origin["id"] for origin in origins] == ["a", "b"]
    known = {row["id"]: row for row in labels.to_pylist()}
    for origin in origins:
        for name in ("llm_request_id", "llm_batch_id", "llm_model", "llm_prompt_version", "llm_run_id"):
            assert origin[name] == known[origin["id"]][name]
        assert origin["llm_run_id"] == "run-1"
        assert "topic" not in origin
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "train.provenance.jsonl"}


def test_labels_as_any_frame_give_the_same_examples(labels):
    assert list(fine_tuning(LABELING, ROWS, pl.from_arrow(labels))) == list(fine_tuning(LABELING, ROWS, labels))


def test_what_gives_no_examples_is_refused_at_once(labels, tmp_path):
    with pytest.raises(ConfigError, match="the forms are openai, anthropic"):
        fine_tuning(LABELING, ROWS, labels, "gemini")
    vectors = Labeling(asset="v", model="openai/e", key="id", prompt=Prompt(user="{{ body }}"), response=Embedding())
    with pytest.raises(ConfigError, match="gives embeddings"):
        fine_tuning(vectors, ROWS, labels)
    with pytest.raises(InputError, match="lack the columns topic"):
        write_examples(fine_tuning(LABELING, ROWS, labels.drop_columns("topic")), tmp_path / "train.jsonl")
    assert list(tmp_path.iterdir()) == []
