"""Mask names by Presidio and a model of spaCy, by docs/how-to/mask-names.md. `python3 -m tests presidio` installs both.

spaCy's own models are on no package index, so the test trains a small one on a few sentences.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import spacy
from markdown_it import MarkdownIt
from spacy.training import Example

from dagster_llm_batch import LLMBatchResource, Mask, OpenAIBatchResource, Prompt, llm_batch_assets
from dagster_llm_batch.core.masks import Masker
from dagster_llm_batch.testing.contracts import MaskerContract
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "mask-names.md"
NAMES = ("Ann Smith", "Bob Jones", "Carla Diaz", "Dora Weiss")
TEXTS = ("Please call {} about the invoice.", "{} paid twice, and wants it back.", "The parcel of {} is lost.")
TRAINED_TIMES = 40


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a model that was trained to find four names, which takes some seconds."""
    random.seed(0)
    spacy.util.fix_random_seed(0)
    trained = spacy.blank("en")
    trained.meta["name"] = "four_names"
    trained.add_pipe("ner").add_label("PERSON")
    examples = []
    for text in TEXTS:
        for name in NAMES:
            start = text.index("{}")
            entities = [(start, start + len(name), "PERSON")]
            examples.append(Example.from_dict(trained.make_doc(text.format(name)), {"entities": entities}))
    examples.append(Example.from_dict(trained.make_doc("The invoice is wrong."), {"entities": []}))
    trained.initialize(lambda: examples)
    for _ in range(TRAINED_TIMES):
        random.shuffle(examples)
        trained.update(examples)
    return trained


@pytest.fixture(scope="module")
def masker(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Masker]:
    """Return the page's masker with this model; the page's module is forgotten at the end."""
    folder = tmp_path_factory.mktemp("page")
    [code] = [
        token.content
        for token in MarkdownIt().parse(GUIDE.read_text(encoding="utf-8"))
        if token.type == "fence" and token.info == 'py title="names.py"'
    ]
    folder.joinpath("names.py").write_text(code, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield importlib.import_module("names").PersonNames(model)
    sys.path.remove(str(folder))
    del sys.modules["names"]


class TestPersonNames(MaskerContract):
    @pytest.fixture
    def masker(self, masker: Masker) -> Masker:
        return masker

    @pytest.fixture
    def planted(self) -> Mapping[str, Sequence[str]]:
        texts = {text.format(name): [name] for text in TEXTS for name in NAMES}
        return {**texts, "The invoice is wrong.": []}


def test_the_name_of_the_masker_has_the_versions(masker: Masker) -> None:
    assert masker.name.startswith("presidio ")
    assert masker.name.endswith("four_names 0.0.0")


def test_no_name_is_sent_or_kept(masker: Masker, tmp_path: Path) -> None:
    rows = [
        {"id": str(at), "body": text.format(name)} for at, (text, name) in enumerate(zip(TEXTS, NAMES, strict=False))
    ]
    sent: list[str] = []

    def answer(body: dict[str, Any], _endpoint: object) -> str:
        sent.append(json.dumps(body))
        return "A refund"

    assets = llm_batch_assets(
        name="wishes",
        rows=lambda context: rows,
        key="id",
        keep=["body"],
        prompt=Prompt(user="What do they want? {{ body }}", mask=Mask(columns=["body"], by=[masker])),
        model="openai/gpt-5-nano",
        params={"max_completion_tokens": 200},
    )
    with Emulator(answer=answer) as emulator, dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        provider = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
        given: dict[str, Any] = {"resources": {"llm_batch": LLMBatchResource(openai=provider)}, "instance": instance}
        result = dg.materialize(assets, selection=["wishes_batch"], **given)
        emulator.settle()
        assert dg.materialize(assets, selection=["wishes", "wishes_rejects"], **given).success
        labels = dg.Definitions(assets, resources=given["resources"]).load_asset_value("wishes", instance=instance)
    [event] = result.asset_materializations_for_node("wishes_batch")
    assert event.metadata["llm_batch/masked_person"].value == len(rows)
    assert len(sent) == len(rows)
    for text in [*sent, *labels["body"].to_pylist()]:
        assert "[PERSON_1]" in text
        assert [name for name in NAMES if name in text] == []
