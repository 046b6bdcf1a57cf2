"""`advise`, as its user types it: runs of two models over the emulator, and gold."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import yaml

from dagster_llm_batch import Cascade, Rolling
from dagster_llm_batch.cli.advise import yaml_text
from dagster_llm_batch.storage.ledger.records import Judgment
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

TOPICS = ("billing", "bug")
ROWS = 100

MORE = """
from dagster_llm_batch import evaluation_assets


class SureLabel(TicketLabel):
    confidence: float


@dg.asset
def ticket_gold() -> list:
    return [{"ticket_id": f"{day}-{n}", "topic": ("billing", "bug")[n % 2]} for day in DAYS for n in range(ROWS)]


sure = {**common, "response": SureLabel, "rows": rows, "partitions_def": daily}
small = llm_batch_assets(name="small", **{**sure, "model": "openai/gpt-4o-mini"})
large = llm_batch_assets(name="large", **sure)
unsure = llm_batch_assets(name="unsure", **{**common, "rows": rows})
# It has no gold yet, so that the other one counts.
on_topic = {"key": "ticket_id", "target": "topic"}
a_eval = evaluation_assets(name="a_eval", gold=dg.AssetKey("nobody"), candidates=[small], **on_topic)
ticket_eval = evaluation_assets(name="ticket_eval", gold=ticket_gold, candidates=[small, large], **on_topic)
"""


def answer(body, _url):
    number = int(re.findall(r"2026-01-0\d (\d+)\?", str(body))[0])
    is_wrong = body["model"] == "gpt-4o-mini" and number % 10 == 0
    return {"topic": TOPICS[(number + is_wrong) % 2], "confidence": 0.5 if is_wrong else 0.9}


@pytest.fixture
def emulator():
    with Emulator(answer=answer) as running:
        yield running


@pytest.fixture
def shop(project, home):
    """Make a project in which two models have labeled two days, with gold from people."""
    project.change("for n in range(3)]", f"for n in range({ROWS})]")
    days = 'DAYS = ["2026-01-01", "2026-01-02"]\nROWS = ' + str(ROWS)
    project.change("here = f", f"{days}\n{MORE}\nhere = f")
    project.change(
        "*asset_labels],",
        "*asset_labels, ticket_gold, *small, *large, *unsure, *a_eval, *ticket_eval],",
    )
    return project


@pytest.fixture
def labeled(shop):
    for day in ("2026-01-01", "2026-01-02"):
        for name in ("small", "large"):
            shop.submit(name, day)
    shop.settle()
    defs = shop.module()
    with dg.DagsterInstance.get() as instance:
        dg.materialize([defs["ticket_gold"]], instance=instance)
    return shop


@pytest.mark.parametrize("name", ["no", "0.5", "a: b", "", "openai/gpt-5-nano", "two\nlines, \x1b[2J", "long " * 60])
def test_a_name_is_pasted_as_the_text_that_it_is(name):
    written = yaml_text(name)
    assert yaml.safe_load(f"target: {written}") == {"target": name}
    assert written.isprintable()


@pytest.mark.slow
def test_what_reaches_a_quality_is_listed_with_what_to_paste_and_why_not_the_others(labeled, monkeypatch):
    before = labeled.files()
    shown = labeled.json("advise", "small", "--quality", "0.93")
    assert (shown["rows"], shown["against"], shown["target"], shown["score"]) == (ROWS, "gold", "topic", "confidence")
    best, by_state = shown["plans"][0], {}
    for plan in shown["plans"]:
        by_state.setdefault(plan["state"], []).append((plan["model"], plan["oracle"], plan["lane"]))
    assert (best["state"], best["model"], best["quality"], best["quality_rows"]) == (
        "feasible",
        "openai/gpt-4o",
        1.0,
        2 * ROWS,
    )
    assert best["quality_low"] > 0.93
    assert ("openai/gpt-4o-mini", None, "batch") in by_state["open"]
    assert {plan["end_basis"] for plan in shown["plans"]} != {None}
    assert "Other evaluations with gold of these rows: a_eval (--evaluation)." in shown["unknown"]
    evidence = {record["model"]: record for record in shown["evidence"]}
    assert [(record["runs"], record["rows"]) for record in evidence.values()] == [(2, 2 * ROWS)] * 2
    assert evidence["openai/gpt-4o"]["partitions"] == ["2026-01-01", "2026-01-02"]
    # The result is the same every time except for its time of day, and the command leaves no files.
    again = labeled.json("advise", "small", "--quality", "0.93")
    for document in (shown, again):
        document.pop("now")
        for plan in document["plans"]:
            plan.pop("p95_end_at")
    assert shown == again
    assert labeled.files() == before

    # With the dear model as reference, a cascade can be certified. Paste its printed settings.
    many = ["--rows", "20000", "--against", "openai/gpt-4o"]
    cascade = labeled.json("advise", "small", "--quality", "0.95000004", *many)["plans"][0]
    assert (cascade["state"], cascade["oracle"], cascade["quality_low"]) == ("feasible", "openai/gpt-4o", 0.95000004)
    assert cascade["is_certified_by_its_run"]
    pasted = yaml.safe_load(cascade["yaml"])
    assert pasted["model"] == cascade["model"] == "openai/gpt-4o-mini"
    declared = eval(f"dict({cascade['python']})", {"Cascade": Cascade})
    assert declared["cascade"] == Cascade(**pasted["cascade"])
    assert declared["cascade"].sample == cascade["sample"]
    # The printed agreement is not lower than the requested one.
    assert declared["cascade"].agreement == 0.95000004

    monkeypatch.setenv("COLUMNS", "80")
    told = labeled.on_file("advise", "small", "--quality", "0.95", *many, "--max-usd", "0.01", code=1)
    assert "No known plan reaches this quality." in told.output
    assert "it may cost" in told.output
    told = labeled.on_file("advise", "small", "--quality", "0.95", *many)
    assert all(len(line) <= 80 for line in told.output.partition("The first,")[0].splitlines()[2:])
    assert "oracle: openai/gpt-4o" in told.output
    assert "openai/gpt-4o-mini | openai/gpt-4o-mini in real time: quality 0.900" in told.output
    assert DEFAULT_KEY not in told.output

    # A time of day means the next one. An end without a forecast is reported as unknown.
    by = (datetime.now().astimezone() + timedelta(hours=3)).replace(second=0, microsecond=0)
    timed = labeled.json("advise", "small", "--quality", "0.93", "--by", f"{by:%H:%M}", code=1)
    assert datetime.fromisoformat(timed["by"]) == by
    assert datetime.fromisoformat(timed["by"]).tzinfo == UTC
    assert {plan["p95_end_at"] for plan in timed["plans"]} == {None}
    assert (
        "end: too few days with batches of openai/gpt-4o-mini that ended: 1, of 10 that are needed"
        in timed["plans"][0]["unknown"]
    )
    over = labeled.on_file("advise", "small", "--quality", "0.93", "--by", "2026-01-01T06:00+01:00", code=2)
    assert "is over" in over.output
    # By address, or after the code was removed, the ledger has a dataset's newest definition.
    labeled.change("*small, *large,", "*large,")
    labeled.change("candidates=[small, large]", "candidates=[large]")
    labeled.change("candidates=[small]", "candidates=[large]")
    gone = labeled.json("advise", "small", "--quality", "0.95", "--target", "topic", *many, "--beside", "large")
    assert gone["plans"][0]["oracle"] == "openai/gpt-4o"


@pytest.mark.slow
def test_plans_of_a_provider_without_key_are_listed_with_the_reason(labeled, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    told = labeled.on_file("advise", "small", "--quality", "0.93", code=1)
    assert "quality: 0.900" in told.output
    assert "OPENAI_API_KEY, which is not set" in told.output


@pytest.mark.slow
def test_of_daily_partitions_earlier_ones_may_set_the_threshold_which_assumes_something(labeled):
    plans = labeled.json("advise", "small", "--quality", "0.9", "--rows", "20000", "--against", "openai/gpt-4o")[
        "plans"
    ]
    [rolling, *_] = [plan for plan in plans if plan["rolling"] is not None]
    pasted = yaml.safe_load(rolling["yaml"])["cascade"]
    assert pasted.pop("calibrate") == {"rows": 400, "audit": 0.01}
    declared = eval(f"dict({rolling['python']})", {"Cascade": Cascade, "Rolling": Rolling})["cascade"]
    assert declared == Cascade(**pasted, calibrate=Rolling(rows=400, audit=0.01))
    assert "mean the same as in the partitions before" in rolling["rolling"]["assumes"]


@pytest.mark.slow
def test_with_gold_a_cascade_is_promised_against_it_by_what_is_printed_to_paste(labeled):
    told = labeled.json("advise", "small", "--quality", "0.85", "--rows", "20000")
    [below, *_] = [plan for plan in told["plans"] if plan["within"] is not None]
    pasted = yaml.safe_load(below["yaml"])["cascade"]
    assert (pasted["gold"], pasted["within"], below["agreement"]) == ("ticket_gold", below["within"], None)
    declared = eval(f"dict({below['python']})", {"Cascade": Cascade})["cascade"]
    assert declared == Cascade(**pasted)
    assert any("People have to label" in note for note in below["notes"])


@pytest.mark.slow
def test_what_people_judged_is_gold_where_no_evaluation_has_some(labeled):
    labeled.change("candidates=[small, large]", "candidates=[large]")
    labeled.change("candidates=[small]", "candidates=[large]")
    told = labeled.on_file("advise", "small", "--quality", "0.85", "--target", "topic", code=2)
    assert "it is not a candidate of an evaluation" in " ".join(told.output.split())

    def judge(number, annotator, **said):
        with labeled.engine() as engine:
            judgment = Judgment(
                form_id=f"{number} {annotator}",
                namespace=engine.namespace,
                dataset="small",
                partition="2026-01-01",
                row_key=f"2026-01-01-{number}",
                annotator=annotator,
                at=datetime.now(UTC),
                **said,
            )
            engine.ledger.judgments.add(judgment)

    for number in range(60):
        judge(number, "ana", kind="label", answer={"topic": TOPICS[number % 2], "confidence": 1.0})
    # A tie is not gold, and neither is an undecidable row.
    judge(0, "ben", kind="label", answer={"topic": TOPICS[1], "confidence": 1.0})
    judge(1, "ben", kind="undecidable")
    shown = labeled.json("advise", "small", "--quality", "0.75", "--target", "topic", "--beside", "large")
    by_model = {plan["model"]: plan for plan in shown["plans"] if plan["oracle"] is None}
    assert shown["against"] == "gold"
    cheap = by_model["openai/gpt-4o-mini"]
    assert (cheap["quality_rows"], cheap["quality"]) == (58, pytest.approx(53 / 58))
    assert cheap["quality_low"] < 53 / 58 < cheap["quality_high"]
    assert by_model["openai/gpt-4o"]["quality"] == 1
    assert any("People chose the rows that they judged" in text for text in shown["unknown"])
    printed = labeled.on_file("advise", "small", "--quality", "0.75", "--target", "topic", "--beside", "large").output
    assert "by the human labels of 58 rows" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["smal", "--quality", "0.9"], "Did you mean 'small'?"),
        (["small", "--quality", "1"], "no number of rows shows that all labels are right"),
        (["small", "--quality", "1.2"], "range"),
        (["small", "--quality", "nan"], "no number of rows shows"),
        (["small", "--quality", "0.9", "--max-usd", "nan"], "--max-usd nan is no number"),
        (["small", "--quality", "0.9", "--evaluation", "eval"], "those that are: a_eval, ticket_eval"),
        (["small"], "Missing option '--quality'"),
        (["unsure", "--quality", "0.9"], "it is not a candidate of an evaluation"),
        (["small", "--quality", "0.9", "--target", "topics"], "its columns: topic, confidence"),
        (["small", "--quality", "0.9", "--against", "openai/gpt-9"], "these are openai/gpt-4o-mini, openai/gpt-4o"),
        (["small", "--quality", "0.9", "--by", "6 o'clock"], "neither a time of day, as 06:00"),
        (["small", "--quality", "0.9"], "has no complete run in this ledger"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(shop, arguments, words):
    told = shop.on_file("advise", *arguments, code=2)
    assert words in " ".join(told.output.split())


def test_models_that_were_never_asked_are_said_to_be_unknown(shop):
    told = shop.json("advise", "small", "--quality", "0.9", "--rows", "500", code=1)
    assert {plan["state"] for plan in told["plans"]} == {"open"}
    assert {plan["expected_usd"] for plan in told["plans"]} == {plan["quality"] for plan in told["plans"]} == {None}
    reasons = {reason for plan in told["plans"] for reason in plan["unknown"]}
    assert "cost: no run of openai/gpt-4o-mini in this ledger" in reasons
    assert any("The gold cannot be read" in reason for reason in told["unknown"])
