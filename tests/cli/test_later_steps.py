"""A plan shows what later steps of a chain may cost, and an erasure reaches them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import dagster as dg
import pytest

from dagster_llm_batch.cli.later_steps import LaterStep, sum_steps
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.testing.emulator.answers import last_user_text

CHAIN = """
next_labels = llm_batch_assets(
    name="next_labels",
    rows=AssetRows(asset=asset_labels, when="topic == 'billing'"),
    **{**common, "prompt": Prompt(user="Next: {{ ticket_id }}")},
)
last_labels = llm_batch_assets(
    name="last_labels",
    rows=AssetRows(asset=next_labels),
    **{**common, "prompt": Prompt(user="Last: {{ ticket_id }}")},
)
here ="""
ROWS = """    return [{"ticket_id": f"t{n}", "body": f"Case {n}"} for n in range(COUNT)]"""


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    def answer(body: Any, _endpoint: str) -> Any:
        """Answer billing for three of four tickets."""
        number = int(re.findall(r"\d+", last_user_text(body))[0])
        return {"topic": "bug" if number % 4 == 0 else "billing"}

    with Emulator(answer=answer) as running:
        yield running


@pytest.fixture
def run(project, home) -> Any:
    """Return a function that runs a step of the chain: it submits and materializes."""
    project.change("    Limits,", "    AssetRows,\n    Limits,")
    project.change("\nhere =", CHAIN)
    project.change("*asset_labels]", "*asset_labels, *next_labels, *last_labels]")
    project.change('    return [{"ticket_id": "a", "body": "Where is my invoice?"}]', ROWS.replace("COUNT", "8"))

    def step(*names: str) -> None:
        module = project.module()
        assets = [module["tickets"], *module["asset_labels"], *module["next_labels"], *module["last_labels"]]
        with dg.DagsterInstance.get() as instance:
            done = {"instance": instance, "resources": module["defs"].resources}
            for name in names:
                if name == "tickets":
                    dg.materialize(assets, selection=[name], **done)
                    continue
                dg.materialize(assets, selection=[f"{name}_batch"], **done)
                project.emulator.settle()
                dg.materialize(assets, selection=[name, f"{name}_rejects"], **done)

    return step


def test_steps_after_two_planned_datasets_of_a_chain_are_counted_once_in_any_order():
    """A is read by B, and B by C. Two partitions of A are planned, and one of B."""
    b, c = (LaterStep(name, reads, None, 10, 0, 0, None) for name, reads in (("B", "A"), ("C", "B")))
    of_a, of_b = [("A", b), ("A", c)], [("B", replace(c, rows_at_most=3))]
    for planned in (of_a + of_a + of_b, of_b + of_a + of_a, of_a + of_b + of_a):
        assert [(step.asset, step.rows_at_most) for step in sum_steps(planned)] == [("B", 20), ("C", 20)]


def later(project) -> list[dict[str, Any]]:
    [plan] = project.json("plan", "asset_labels")["plans"]
    return plan["later"]


@pytest.mark.slow
def test_a_plan_shows_the_rows_and_cost_of_later_steps_by_the_share_that_went_on(project, run):
    """It runs a Dagster, two steps of a chain twice. Until 30 rows are known, the share is unknown."""
    run("tickets", "asset_labels", "next_labels")
    few = later(project)
    assert [(one["asset"], one["reads"], one["rows_at_most"], one["rows"], one["share"]) for one in few] == [
        ("next_labels", "asset_labels", 8, None, None),
        ("last_labels", "next_labels", 8, 8, 1.0),
    ]
    told = project.on_file("plan", "asset_labels").stdout
    assert (
        "next_labels reads the labels of asset_labels: up to 8 rows (too few rows, 8, show how often "
        "when=\"topic == 'billing'\" is true), at most about"
    ) in told

    project.change("range(8)", "range(40)")
    run("tickets", "asset_labels", "next_labels")
    project.change("range(40)", "range(80)")
    run("tickets")
    following, last = later(project)
    assert (following["rows_at_most"], following["share"], following["share_from_rows"], following["rows"]) == (
        80,
        0.75,
        40,
        60,
    )
    assert (last["rows_at_most"], last["when"], last["rows"]) == (60, None, 60)
    with project.engine() as engine:
        billed = engine.ledger.history.billed_submissions("test", ["next_labels"], "openai/gpt-4o", 9)
    assert len(billed) == 2
    # The second submission asks only what the first did not: 24 of 30 rows.
    assert sum(one.requests - one.reused for one in billed) == 30
    by_hand = 60 * sum(one.cost_usd for one in billed) / 30
    assert Decimal(str(following["estimated_usd"])) == pytest.approx(by_hand)
    told = project.on_file("plan", "asset_labels", "next_labels").stdout
    assert told.count("last_labels reads the labels of next_labels") == 1
    assert (
        "next_labels reads the labels of asset_labels: about 60 rows of 80 (when=\"topic == 'billing'\" is true for "
        "75% of 40 rows so far), at most about"
    ) in told
    assert "last_labels reads the labels of next_labels: about 60 rows, cost unknown until it was billed once." in told

    # Another condition has no learned share.
    project.change("topic == 'billing'", "topic == 'bug'")
    other, _ = later(project)
    assert (other["share"], other["share_from_rows"], other["estimated_usd"]) == (None, 0, None)


@pytest.mark.slow
def test_an_erased_row_leaves_every_step_of_the_chain_that_is_named_and_the_others_are_listed(project, run):
    """It runs a Dagster, two steps of a chain twice."""
    run("tickets", "asset_labels", "next_labels")
    told = project.on_file("erase", "asset_labels", "--key", "t1", "--delete", "--yes").stdout
    assert "labeled datasets that are made of these: last_labels, next_labels" in told
    both = ("erase", "asset_labels", "next_labels", "--key", "t1")
    assert [(one["asset"], one["rows"]) for one in project.json(*both)["found"]] == [("next_labels", 1)]
    project.on_file(*both, "--delete", "--yes")
    assert project.json(*both)["found"] == []
    assert len([call for call in project.emulator.books.calls if call.method == "DELETE"]) == 4
    sent = project.emulator.books.creates_seen
    run("asset_labels", "next_labels")
    assert project.emulator.books.creates_seen == sent
    with dg.DagsterInstance.get() as instance:
        for name, keys in (("asset_labels", "0234567"), ("next_labels", "23567")):
            table = project.module()["defs"].load_asset_value(name, instance=instance)
            assert sorted(table["ticket_id"].to_pylist()) == [f"t{n}" for n in keys]
