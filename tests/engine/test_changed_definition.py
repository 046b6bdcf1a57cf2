"""A definition changes while a batch is in flight: replies are read by the definition that made their requests."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from workspace import Workspace, assert_total, billed, forget_definition, labeling, tickets

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Fallback, Labeling, Limits, Realtime, Resend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.testing.emulator import Emulator, RowFault

OTHER_WORDS = Prompt(system="You sort support tickets.", user="{{ subject }}\n\n{{ body }}")


class Explained(BaseModel):
    """Has the columns of TicketLabel, with longer descriptions."""

    topic: Literal["billing", "bug", "how_to"] = Field(description="What it is about.")
    urgency: Annotated[int, Field(ge=1, le=5, description="5 is the most.")]


Explained.__name__ = "TicketLabel"


class Narrower(BaseModel):
    """Has the same columns, which allow only other values."""

    urgency: Annotated[int, Field(ge=6, le=9)]
    topic: Literal["billing", "bug", "how_to"]


class OtherColumns(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    mood: float


CHANGES: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": OTHER_WORDS},
    "examples": {"prompt": Prompt(user="{{ subject }}\n\n{{ body }}", examples=[("a", "b")])},
    "params": {"params": {"max_tokens": 60}},
    "model": {"model": "openai/gpt-4o-mini"},
    "words of the response": {"response": Explained},
    "values of the response": {"response": Narrower},
    "columns": {"response": OtherColumns},
    "no response": {"response": None},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_answers_are_read_by_the_definition_that_asked_and_nothing_more_is_sent(
    workspace: Workspace, change: dict[str, Any]
) -> None:
    old, new = labeling(), labeling(**change)
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503))
    first = workspace.engine().plan(old, tickets(4)).submission_id
    workspace.engine().submit(old, first)
    workspace.emulator.settle()
    status = workspace.engine().advance(new, first)
    assert status.is_settled
    assert status.submission.outcomes == {"succeeded": 3, "errored": 1}
    assert len(workspace.emulator.books.batches) == 1
    labels, rejects = assert_total(workspace, new, first, 4)
    assert labels.select(["ticket_id", "topic", "urgency"]).num_rows == 3
    assert rejects["ticket_id"].to_pylist() == ["t1"]
    assert set(labels["llm_prompt_version"].to_pylist()) == {old.prompt_version}
    held = workspace.engine().unsent(first).held
    assert held is not None
    assert held.startswith("1 requests are not sent again: the definition has changed (")
    assert "materialize the asset that submits 'ticket_labels'" in held
    # As on a person's command, with the raw lines read again.
    again = workspace.engine().labels(new, first, reread=True)
    assert again.labels.drop_columns(["llm_run_id"]).equals(labels.drop_columns(["llm_run_id"]))


def test_what_was_held_is_asked_when_the_same_definition_is_materialized_again(workspace: Workspace) -> None:
    old, new = labeling(), labeling(params={"max_tokens": 60})
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503))
    first = workspace.engine().plan(old, tickets(4)).submission_id
    workspace.engine().submit(old, first)
    workspace.emulator.settle()
    assert workspace.engine().advance(new, first).is_settled
    workspace.emulator.clear_faults()
    assert workspace.run(old, tickets(4)).submission.outcomes == {"succeeded": 4}
    assert len(billed(workspace)) == len(set(billed(workspace))) == 4


def test_what_is_not_sent_yet_waits_while_a_batch_runs_and_is_dropped_with_words_when_all_is_collected(
    workspace: Workspace,
) -> None:
    old, new = labeling(limits=Limits(max_requests_per_batch=2)), labeling(prompt=OTHER_WORDS)
    engine = workspace.engine(queue_limits={"openai": QueueLimit(max_batches=1)})
    first = engine.plan(old, tickets(6)).submission_id
    assert engine.submit(old, first).states == {"submitted": 1, "planned": 2}
    status = engine.advance(new, first)
    assert status.submission.state is SubmissionState.OPEN
    assert (engine.activity.outlook().stranded(first) or "").startswith("the definition has changed (prompt)")
    workspace.emulator.settle()
    status = engine.advance(new, first)
    assert status.is_settled
    assert status.submission.outcomes == {"succeeded": 2, "canceled": 4}
    assert len(workspace.emulator.books.batches) == 1
    assert "4 requests are not sent: the definition has changed (prompt)" in (engine.unsent(first).held or "")
    assert workspace.run(old, tickets(6)).submission.outcomes == {"succeeded": 6}
    assert len(billed(workspace)) == len(set(billed(workspace))) == 6


def test_a_submission_of_which_nothing_was_sent_is_never_sent_and_leaves_the_queue_to_others(
    workspace: Workspace,
) -> None:
    old, new = labeling(), labeling(prompt=OTHER_WORDS)
    first = workspace.engine().plan(old, tickets(3)).submission_id
    assert workspace.engine().advance(new, first).submission.outcomes == {"canceled": 3}
    assert "3 requests are not sent" in (workspace.engine().unsent(first).held or "")
    assert not workspace.emulator.books.batches
    assert workspace.run(old, tickets(3)).submission.outcomes == {"succeeded": 3}


def test_rules_that_ask_nothing_else_hold_at_once(workspace: Workspace) -> None:
    old = labeling(resend=Resend(max_waves=1), keep=["subject"])
    new = labeling(resend=Resend(max_waves=3), keep=["subject"], max_cost_usd=5)
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    first = workspace.engine().plan(old, tickets(4)).submission_id
    workspace.engine().submit(old, first)
    status = workspace.finish(new, first)
    assert status.submission.outcomes == {"succeeded": 4}
    assert status.submission.waves == 2
    assert workspace.engine().unsent(first).held is None


def test_answers_of_a_fallback_that_is_none_any_more_are_read_and_it_is_asked_no_more(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 1?"))
    old = labeling(resend=Resend(fallback=[Fallback("openai/gpt-4o-mini", params={"max_tokens": 40})]))
    new = labeling()
    first = workspace.engine().plan(old, tickets(4)).submission_id
    workspace.engine().submit(old, first)
    workspace.emulator.settle()
    status = workspace.engine().advance(old, first)
    assert status.states == {"collected": 1, "submitted": 1}  # the refused row is at the fallback
    # It is materialized by the present definition meanwhile, as a schedule does.
    assert workspace.engine().plan(new, tickets(4)).submission_id == first
    status = workspace.finish(new, first)
    assert status.submission.outcomes == {"succeeded": 3, "errored": 1}
    assert len(workspace.emulator.books.batches) == 2
    assert {shard.model for shard in status.shards} == {"gpt-4o", "gpt-4o-mini"}


def test_requests_planned_for_a_fallback_that_is_none_any_more_are_not_sent(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 1?"))
    old, new = labeling(resend=Resend(fallback=["openai/gpt-4o-mini"])), labeling()
    first = workspace.engine().plan(old, tickets(4)).submission_id
    workspace.engine().submit(old, first)
    workspace.emulator.settle()
    assert workspace.engine().collect(old, first).states == {"collected": 1, "planned": 1}
    status = workspace.finish(new, first)
    assert status.submission.outcomes == {"succeeded": 3, "errored": 1}
    assert len(workspace.emulator.books.batches) == 1


class Priced(BaseModel):
    """A class that makes other values of replies than they have: a decimal number, a default."""

    topic: Literal["billing", "bug", "how_to"]
    price: Decimal
    note: str = "none"


def test_a_class_that_is_gone_has_told_what_its_columns_and_defaults_were(tmp_path: Path) -> None:
    with Emulator(answer=lambda _body, _url: '{"topic": "bug", "price": 1.25}') as emulator:
        _read_without_the_class(Workspace(tmp_path, emulator), labeling(response=Priced))


def _read_without_the_class(workspace: Workspace, old: Labeling) -> None:
    first = workspace.engine().plan(old, tickets(2)).submission_id
    workspace.engine().submit(old, first)
    workspace.emulator.settle()
    gone = labeling(response=None)
    assert workspace.engine().advance(gone, first).submission.outcomes == {"succeeded": 2}
    labels = workspace.engine().labels(gone, first).labels
    by_class = workspace.engine().labels(old, first, reread=True).labels
    assert labels.equals(by_class)
    assert labels["price"].to_pylist() == ["1.25"] * 2
    assert labels["note"].to_pylist() == ["none"] * 2


@pytest.mark.parametrize("change", [*CHANGES.values(), {"keep": ["subject"]}, {"key": "subject"}])
def test_a_labeling_is_made_again_of_its_stored_definition(change: dict[str, Any]) -> None:
    old, new = labeling(resend=Resend(fallback=["openai/gpt-4o-mini"])), labeling(**change)
    again = new.as_of(old.definition)
    assert {**again.definition, "asked": {**again.definition["asked"], "response": 0}} == {
        **old.definition,
        "asked": {**old.definition["asked"], "response": 0},
    }
    assert old.column_gap(again) is None
    assert {field.name for field in again.reader.fields} == {"topic", "urgency"}


def test_columns_in_another_order_land_in_that_of_the_present_definition() -> None:
    again = labeling(response=Narrower).as_of(labeling().definition)
    assert again.reader.schema.names == ["urgency", "topic"]
    assert labeling(response=OtherColumns).column_gap(again) == "without mood, with urgency"
    assert labeling(key="subject").column_gap(labeling()) == "without subject, with ticket_id"


def test_a_plan_of_older_code_is_read_as_before(workspace: Workspace) -> None:
    old = labeling()
    first = workspace.engine().plan(old, tickets(3))
    forget_definition(workspace, first)
    workspace.engine().submit(old, first.submission_id)
    workspace.emulator.settle()
    with pytest.raises(ConfigError, match="was made with another model, parameters, response schema or account"):
        workspace.engine().advance(labeling(response=OtherColumns), first.submission_id)
    assert any(name.endswith(".raw.jsonl.zst") for name in workspace.files())
    assert workspace.finish(labeling(prompt=OTHER_WORDS), first.submission_id).submission.outcomes == {"succeeded": 3}


def test_real_time_answers_of_a_definition_that_has_changed_land_and_no_more_are_asked(workspace: Workspace) -> None:
    rows = tickets(3).with_columns(urgent=tickets(3)["ticket_id"] == "t1")
    old = labeling(realtime=Realtime(urgent="urgent"))
    new: Labeling = labeling(realtime=Realtime(urgent="urgent"), prompt=OTHER_WORDS)
    first = workspace.engine().plan(old, rows).submission_id
    workspace.engine().submit(old, first)
    workspace.emulator.settle()
    status = workspace.engine().advance(new, first)
    assert status.submission.outcomes == {"succeeded": 3}
    labels, _ = assert_total(workspace, new, first, 3)
    assert sorted(labels["llm_lane"].to_pylist()) == ["batch", "batch", "realtime"]
    assert set(labels["llm_prompt_version"].to_pylist()) == {old.prompt_version}
