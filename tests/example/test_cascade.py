"""The guarantee, measurements and output of `python3 -m example_project cascade`."""

from __future__ import annotations

import operator
import sys
import time
from dataclasses import replace
from decimal import Decimal

import dagster as dg
import polars as pl
import pytest
from rich.console import Console

from dagster_llm_batch import CommandBatchResource, LLMBatchResource
from example_project import data
from example_project.cascade import FilterOutcome, Outcome, measure, measure_filter, show
from example_project.cascade_definitions import cascade_assets
from example_project.definitions import ask, params
from example_project.labelers.vader import answering
from example_project.parquet import ParquetIOManager
from example_project.settings import LEXICON

ROWS = 100


@pytest.mark.slow
def test_the_cascade_lands_and_what_came_of_its_promise_is_measured(tmp_path, monkeypatch):
    """Use the lexicon for the oracle too, so that all labels agree. It runs in its own process, as usual."""
    monkeypatch.setenv("EXAMPLE_CASCADE_ROWS", str(ROWS))
    labeler = [sys.executable, "-m", "example_project.labelers.vader", "--model", "{model}"]
    resource = LLMBatchResource(
        ledger_url=f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        payload_root=str(tmp_path / "payloads"),
        command=CommandBatchResource(
            command=[*labeler, "-i", "{input}", "-o", "{output}"], workdir=str(tmp_path / "work"), account="example"
        ),
    )
    assets = cascade_assets(ask, params)
    tables = ParquetIOManager(folder=str(tmp_path / "tables"))
    resources = {"llm_batch": resource, "io_manager": tables}
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:

        def run(*names):
            dg.materialize(assets, selection=list(names), instance=instance, resources=resources)

        def load(name):
            return dg.Definitions(assets=assets, resources=resources).load_asset_value(name, instance=instance)

        names = ("cascade_sentiment", "oracle_sentiment", "positive_tweets")
        run("cascade_tweets", "cascade_gold", *(f"{name}_batch" for name in names))
        engine = resource.engine()
        for name in names:
            submission = engine.latest(name)
            until = time.monotonic() + 300
            while not submission.is_settled:
                while flying := engine.ledger.shards.in_flight(engine.namespace):
                    assert time.monotonic() < until, f"{submission} has batches in flight: {flying}"
                    engine.poll(flying)
                    time.sleep(0.1)
                run(name, f"{name}_rejects")
                submission = engine.latest(name)
        labels, alone, positive, gold = (load(name) for name in (*names, "cascade_gold"))
    found, filtered = measure(labels, alone, gold), measure_filter(positive, alone, gold)
    assert found.rows == ROWS
    assert found.sampled == 56
    assert found.asked < ROWS, "the lexicon and its double are of one mind"
    assert found.agreement == found.cheap_agreement == 1
    assert found.accuracy[0] == found.accuracy[1] == found.accuracy[2]
    assert found.cost_usd < found.alone_usd
    assert filtered.rows == ROWS
    assert filtered.precision == filtered.recall == 1
    assert filtered.found == (alone["label"] == "positive").sum()


def test_the_oracle_is_better_than_the_cheap_model_by_the_labels_of_others():
    """Otherwise the cascade would make the labels worse."""
    texts = data.between()
    gold = [data.label_of_others(ratings) for ratings in texts["ratings"]]
    people = [data.label_of_raters(ratings) for ratings in texts["ratings"]]
    with answering("vader") as answer:
        bodies = [{"messages": [{"role": "user", "content": text}]} for text in texts["text"]]
        lexicon = [answer(body)["choices"][0]["message"]["content"] for body in bodies]

    def accuracy(labels):
        return sum(map(operator.eq, labels, gold)) / len(gold)

    assert accuracy(lexicon) + 0.01 < accuracy(people)


def tables(whys, cheap, oracle, people):
    """Return labels of a cascade, the oracle's labels of all rows, and gold, one letter a row."""
    ids = [str(number) for number in range(len(whys))]
    is_cheap = [why == "accepted" for why in whys]
    labels = pl.DataFrame(
        {
            "text_id": ids,
            "label": [c if own else o for c, o, own in zip(cheap, oracle, is_cheap, strict=True)],
            "llm_level": ["cheap" if own else "oracle" for own in is_cheap],
            "llm_why": whys,
            "llm_cheap_label": [None if own else c for c, own in zip(cheap, is_cheap, strict=True)],
            "llm_cost_usd": [Decimal(not own) for own in is_cheap],
        }
    )
    alone = pl.DataFrame({"text_id": ids, "label": list(oracle), "llm_cost_usd": [Decimal(1)] * len(ids)})
    return labels, alone, pl.DataFrame({"text_id": ids, "label": list(people)})


def test_each_labeler_is_held_against_the_oracle_and_against_people():
    found = measure(*tables(["accepted"] * 3 + ["sampled", "escalated"], "ppnpp", "ppnnn", "ppppn"))
    assert found == Outcome(
        rows=5,
        sampled=1,
        escalated=1,
        invalid=0,
        agreement=1.0,
        cheap_agreement=0.6,
        accuracy=(0.6, 0.6, 0.6),
        cost_usd=Decimal(2),
        alone_usd=Decimal(5),
    )


FOUND = FilterOutcome(600, 240, 350, 0.97, 0.95, 0.94, Decimal("0.0012"))


def said(found, planned="", filtered=FOUND):
    console = Console(width=80)
    with console.capture() as capture:
        show(found, filtered, planned, console)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    return " ".join(" ".join(lines).split())


CAME = Outcome(600, 144, 200, 1, 0.93, 0.74, (0.85, 0.79, 0.73), Decimal("0.0031"), Decimal("0.0054"))


def test_what_was_promised_and_what_came_out_is_said_in_plain_words():
    told = said(CAME)
    assert "with a confidence of 95%, at least 90% of the labels equal those of people" in told
    assert "93.0% of 600 labels do: the guarantee holds" in told
    assert "345 of 600 tweets: a random sample of 144" in told
    assert "255 of 600 questions to people: it cost $0.0031, people alone $0.0054" in told
    assert "a cascade is as good as its oracle" in told, "the lexicon is right more often than the oracle"
    assert "Of 350 found, 97.0% are: the guarantee holds. They are 94.0% of all" in told
    assert "It saved 360 of 600 questions to people: it cost $0.0012, people alone $0.0054" in told


def test_the_lines_of_cascade_and_filter_have_the_same_guarantee_each_with_its_cost():
    told = said(CAME)
    assert "the cascade 90% 345 93.0% 79.0% $0.0031" in told
    assert "people alone 600 100.0% 73.0% $0.0054" in told
    assert "the filter 90% 240 97.0% 95.0% $0.0012" in told
    assert "the filter 600 97.0% 95.0% unknown" in said(CAME, filtered=replace(FOUND, asked=600, cost_usd=None))


def test_a_filter_that_asked_for_all_rows_or_broke_its_promise_is_said():
    assert "so few are too few for a guarantee" in said(CAME, filtered=replace(FOUND, asked=600))
    assert "89.0% are: the guarantee is broken" in said(CAME, filtered=replace(FOUND, precision=0.89))


def test_the_filter_is_held_against_the_oracle_and_against_people():
    _, alone, gold = tables(["sampled"] * 5, "ppppp", "ppnnp", "pnpnp")
    filtered = pl.DataFrame(
        {
            "text_id": [str(number) for number in range(5)],
            "is_positive": [True, True, True, False, False],
            "llm_level": ["oracle", "cheap", "cheap", "cheap", "oracle"],
            "llm_cost_usd": [Decimal(1), Decimal(0), Decimal(0), Decimal(0), Decimal(1)],
        }
    )
    assert measure_filter(
        filtered,
        alone.with_columns(label=pl.col("label").replace({"p": "positive"})),
        gold.with_columns(label=pl.col("label").replace({"p": "positive"})),
    ) == FilterOutcome(5, 2, 3, 2 / 3, 2 / 3, 2 / 3, Decimal(2))


@pytest.mark.parametrize(("changed", "words"), [({"agreement": 0.88}, "the guarantee is broken"), ({}, "savings")])
def test_an_oracle_that_people_agree_with_more_needs_no_warning_and_a_broken_promise_is_said(changed, words):
    found = Outcome(**{**vars(CAME), "accuracy": (0.7, 0.8, 0.81), **changed})
    assert words in said(found)
    assert "as good as its oracle" not in said(found)


def test_where_the_plan_asks_the_oracle_alone_that_is_the_result():
    whys = ["sampled"] * 4
    labels, alone, gold = tables(whys, "pppp", "ppnn", "ppnn")
    nothing = pl.lit(None, pl.String)
    found = measure(labels.with_columns(llm_cheap_label=nothing), alone, gold)
    told = said(found, "asks command/raters alone for all 4 rows")
    assert "asks command/raters alone for all 4 rows" in told
    assert "on so few rows a cascade does not pay" in told
    assert "there is no guarantee" in told
    assert "the lexicon alone" not in told, "it was asked nothing"


def test_the_lexicon_alone_is_no_cascade():
    assert cascade_assets(ask, params, oracle=LEXICON) == []


@pytest.mark.slow
def test_the_cascades_tweets_are_neither_the_examples_own_nor_held_out():
    texts = data.load()
    own = {text for day in data.DAYS[:3] for text in data.subset(texts, day, 1_000)["text_id"]}
    chosen = set(data.between(10_000)["text_id"])
    assert len(chosen) > 2_000
    assert not chosen & own
    assert not chosen & set(data.held_out(texts)["text_id"])
