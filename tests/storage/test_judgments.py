"""Judgments in both ledgers: stored once, read in order, renamed with their dataset, removed with an erased row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.judgments import judgments_version, standing_judgments
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
        ledger.judgments.add(each)
    found = ledger.judgments.read("n", "d")
    assert [one.row_key for one in found] == ["k2", "k1", "k3"]
    assert found[0].answer == said[0].answer
    assert (found[0].seconds, found[0].sample, found[0].at) == (1.25, said[0].sample, said[0].at)
    assert found[0].comment == "a\ufffdb"
    assert ledger.judgments.read("other", "d") == ledger.judgments.read("n", "other") == []


def test_a_form_that_arrives_twice_at_once_is_stored_once(ledger_url):
    ledgers = [Ledger(ledger_url) for _ in range(4)]
    ledgers[0].judgments.read("n", "d")
    with ThreadPoolExecutor(4) as pool:
        for number in range(10):
            list(pool.map(lambda ledger, number=number: ledger.judgments.add(judgment(number)), ledgers))
    assert [one.row_key for one in ledgers[0].judgments.read("n", "d")] == [f"k{number}" for number in range(10)]
    for ledger in ledgers:
        ledger.close()


def test_the_last_word_of_each_person_stands(ledger):
    for number, (who, kind) in enumerate([("ada", "label"), ("bob", "label"), ("ada", "undo"), ("bob", "undecidable")]):
        ledger.judgments.add(judgment(number, row_key="k", annotator=who, kind=kind))
    assert [(one.annotator, one.kind) for one in standing_judgments(ledger.judgments.read("n", "d"))] == [
        ("bob", "undecidable")
    ]


def test_an_erased_row_takes_with_it_what_was_said_of_it(ledger):
    for number, partition in enumerate(["p", "q", "q"]):
        ledger.judgments.add(judgment(number, row_key="k", partition=partition))
    assert ledger.judgments.erase("n", "d", "p", ["k"]) == 1
    assert ledger.judgments.erase("n", "d", "p", []) == 0
    assert [one.partition for one in ledger.judgments.read("n", "d")] == ["q", "q"]
    assert ledger.judgments.erase("n", "d", None, ["k"]) == 2


def test_the_state_of_each_partition_is_another_one_after_each_judgment_and_each_erasure(ledger):
    assert ledger.judgments.states("n", "d") == {}
    versions = []
    for number, partition in enumerate(("mon", "tue", "mon")):
        ledger.judgments.add(judgment(number, row_key=f"k{number}", partition=partition))
        versions.append(judgments_version(ledger.judgments.states("n", "d").values()))
    ledger.judgments.erase("n", "d", None, ["k1"])
    states = ledger.judgments.states("n", "d")
    assert {partition: state.n for partition, state in states.items()} == {"mon": 2}
    assert states["mon"].first_at == judgment(0).at
    assert len({*versions, judgments_version(states.values())}) == 4
