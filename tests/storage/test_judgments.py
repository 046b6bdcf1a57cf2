"""Judgments in both ledgers: stored once, read in order, renamed with their dataset, removed with an erased row."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.judgments import standing_judgments
from dagster_llm_batch.storage.ledger.records import Judgment


@pytest.fixture
def ledger(ledger_url):
    with_ledger = Ledger(ledger_url)
    yield with_ledger
    with_ledger.close()


def judgment(number: int, **changes) -> Judgment:
    given = {
        "form_id": f"f{number}",
        "namespace": "n",
        "dataset": "d",
        "partition": "p",
        "row_key": f"k{number}",
        "annotator": "ada",
        "kind": "label",
        "answer": {"topic": "bug \x00 \ud800 é", "score": 1.5, "nested": {"a": [None, True]}},
        "comment": "a\x00b",
        "seconds": 1.25,
        "sample": {"sample_weight": 2.5, "sample_partition": None},
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Judgment(**(given | changes))


def test_what_was_said_comes_back_once_and_in_order(ledger):
    said = [judgment(number) for number in (2, 1, 3)]
    for each in [*said, *said]:
        ledger.add_judgment(each)
    found = ledger.judgments("n", "d")
    assert [one.row_key for one in found] == ["k2", "k1", "k3"]
    assert found[0].answer == said[0].answer
    assert (found[0].seconds, found[0].sample, found[0].at) == (1.25, said[0].sample, said[0].at)
    assert found[0].comment == "a\ufffdb"
    assert ledger.judgments("other", "d") == ledger.judgments("n", "other") == []


def test_the_last_word_of_each_person_stands(ledger):
    for number, (who, kind) in enumerate([("ada", "label"), ("bob", "label"), ("ada", "undo"), ("bob", "undecidable")]):
        ledger.add_judgment(judgment(number, row_key="k", annotator=who, kind=kind))
    assert [(one.annotator, one.kind) for one in standing_judgments(ledger.judgments("n", "d"))] == [
        ("bob", "undecidable")
    ]


def test_an_erased_row_takes_with_it_what_was_said_of_it(ledger):
    for number, partition in enumerate(["p", "q", "q"]):
        ledger.add_judgment(judgment(number, row_key="k", partition=partition))
    assert ledger.erase_judgments("n", "d", "p", ["k"]) == 1
    assert ledger.erase_judgments("n", "d", "p", []) == 0
    assert [one.partition for one in ledger.judgments("n", "d")] == ["q", "q"]
    assert ledger.erase_judgments("n", "d", None, ["k"]) == 2
