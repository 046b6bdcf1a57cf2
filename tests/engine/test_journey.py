"""From rows to labels, and never paid twice for the same question."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from pydantic import BaseModel
from workspace import TicketLabel, Workspace, assert_total, billed, forget_definition, labeling, texts, tickets

from dagster_llm_batch.core.fixed_responses import Embedding, Moderation
from dagster_llm_batch.core.logprobs import asks_logprobs
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Fallback, Labeling, Limits, Resend, Spend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.types import Endpoint, RequestSpec


class OtherLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]


# the way of the data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_each_row_gets_its_own_label_with_provenance(workspace: Workspace, endpoint: str) -> None:
    definition = labeling(
        endpoint=endpoint,
        params={"max_tokens" if endpoint == "chat" else "max_output_tokens": 50},
        keep=["subject"],
    )
    status = workspace.run(definition, tickets(20))
    labels, rejects = assert_total(workspace, definition, status.submission.submission_id, 20)
    assert len(labels) == 20
    assert len(rejects) == 0
    assert labels.schema.names[:4] == ["ticket_id", "subject", "topic", "urgency"]
    assert labels["subject"].to_pylist() == [f"Subject {key[1:]}" for key in labels["ticket_id"].to_pylist()]
    assert set(labels["llm_batch_id"].to_pylist()) == set(status.batch_ids)
    assert set(labels["llm_price_basis"].to_pylist()) == {"batch"}
    assert status.submission.cost_usd == sum(labels["llm_cost_usd"].to_pylist())
    assert status.submission.realtime_usd == 2 * status.submission.cost_usd
    assert status.submission.outcomes == {"succeeded": 20}


def test_answers_are_joined_by_identity_and_not_by_position(workspace: Workspace) -> None:
    definition = labeling(response=None)
    status = workspace.run(definition, tickets(50), partition="2026-01-01")
    labels = workspace.engine().labels(definition, status.submission.submission_id).labels
    for key, text in zip(labels["ticket_id"].to_pylist(), labels["text"].to_pylist(), strict=True):
        assert text.endswith(f"Where is my invoice number {key[1:]}?")


def test_embeddings_become_vectors(workspace: Workspace) -> None:
    definition = labeling(
        model="openai/text-embedding-3-small", prompt=Prompt("{{ body }}"), response=Embedding(4), params={}
    )
    status = workspace.run(definition, tickets(3))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 3)
    assert [len(vector) for vector in labels["embedding"].to_pylist()] == [4, 4, 4]
    assert status.submission.price_basis.value == "rule:half"  # type: ignore[union-attr]


def test_moderations_become_columns_and_cost_nothing(workspace: Workspace) -> None:
    rows = tickets(3).with_columns(
        body=pl.Series(["I hate you", "Where is my invoice?", "a picture"]),
        photo=pl.Series([None, None, "https://example.com/violence.png"]),
    )
    definition = labeling(
        model="openai/omni-moderation-latest",
        prompt=Prompt("{{ body }}", images=["photo"]),
        response=Moderation(["hate", "self-harm/intent"]),
        params={},
        # The model is free, so a limit of zero lets all requests through.
        max_cost_usd=0,
    )
    status = workspace.run(definition, rows)
    labels, rejects = assert_total(workspace, definition, status.submission.submission_id, 3)
    assert len(rejects) == 0
    table = labels.sort_by("ticket_id")
    assert table["flagged"].to_pylist() == [True, False, False]
    assert table["hate"].to_pylist() == [True, False, False]
    assert [score > 0.5 for score in table["hate_score"].to_pylist()] == [True, False, False]
    assert table["self_harm_intent"].to_pylist() == [False] * 3
    assert [str(table.schema.field(name).type) for name in ("flagged", "hate", "hate_score")] == [
        "bool",
        "bool",
        "double",
    ]
    # A reply without usage is free, and not of unknown cost.
    assert table["llm_cost_usd"].to_pylist() == [Decimal(0)] * 3
    assert set(table["llm_price_basis"].to_pylist()) == {"free"}
    assert table["llm_input_tokens"].to_pylist() == [None] * 3
    assert (status.submission.cost_usd, status.submission.realtime_usd) == (0, 0)


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_the_logprob_of_a_label_is_that_of_its_values(workspace: Workspace, endpoint: str) -> None:
    asked: dict[str, Any] = {"logprobs": True, "max_tokens": 50}
    if endpoint == "responses":
        asked = {"include": ["message.output_text.logprobs"], "max_output_tokens": 50}
    definition = labeling(endpoint=endpoint, params=asked)
    status = workspace.run(definition, tickets(20))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 20)
    rows = labels.select(["topic", "urgency", "llm_logprob"]).to_pylist()
    # The emulator's tokens are words, each with the logprob -1/16 a letter.
    assert [row["llm_logprob"] for row in rows] == [-len(f"{row['topic']}{row['urgency']}") / 16 for row in rows]


def test_who_asks_for_logprobs() -> None:
    included = {"include": ["message.output_text.logprobs"]}
    assert asks_logprobs(RequestSpec("m", params={"logprobs": True}))
    assert asks_logprobs(RequestSpec("m", params={"responseLogprobs": True}))
    assert asks_logprobs(RequestSpec("m", endpoint=Endpoint.RESPONSES, params=included))
    assert not asks_logprobs(RequestSpec("m", params={"logprobs": False}))
    assert not asks_logprobs(RequestSpec("m", endpoint=Endpoint.RESPONSES, params={"logprobs": True}))


def test_logprobs_are_a_column_where_they_are_asked_for_and_null_where_none_came(workspace: Workspace) -> None:
    text = labeling(response=None, params={"logprobs": True, "max_tokens": 50})
    status = workspace.run(text, tickets(2))
    labels = workspace.engine().labels(text, status.submission.submission_id).labels
    assert all(row["llm_logprob"] < -0.5 for row in labels.to_pylist())
    silent = labeling(resend=Resend(fallback=[Fallback("openai/gpt-x", {"logprobs": True})]))
    status = workspace.run(silent, tickets(2), partition="2026-01-03")
    labels = workspace.engine().labels(silent, status.submission.submission_id).labels
    assert labels["llm_logprob"].to_pylist() == [None, None]
    status = workspace.run(labeling(), tickets(2), partition="2026-01-02")
    labels = workspace.engine().labels(labeling(), status.submission.submission_id).labels
    assert "llm_logprob" not in labels.schema.names


def test_shards_hold_every_request_once_and_stay_under_the_limits(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=7, max_bytes_per_batch=5_000))
    status = workspace.run(definition, tickets(30))
    assert_total(workspace, definition, status.submission.submission_id, 30)
    assert len(status.shards) >= 5
    assert all(shard.requests <= 7 and shard.bytes <= 5_000 for shard in status.shards)
    assert sorted(shard.bytes for shard in status.shards) == sorted(
        file.bytes for file in workspace.emulator.books.files if file.filename.startswith("dlb-")
    )
    assert len(billed(workspace)) == len(set(billed(workspace))) == 30


def test_identical_requests_are_sent_once_and_answer_all_their_rows(workspace: Workspace) -> None:
    rows = tickets(6).with_columns(subject=pl.lit("same"), body=pl.lit("same"))
    definition = labeling()
    status = workspace.run(definition, rows)
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 6)
    assert len(billed(workspace)) == 1
    assert len(set(labels["topic"].to_pylist())) == 1
    assert abs(sum(labels["llm_cost_usd"].to_pylist()) - status.submission.cost_usd) < Decimal("1e-9")


# not paid twice ------------------------------------------------------------------------------------------------------


def test_the_same_rows_in_any_order_are_the_same_submission_while_running_and_after(workspace: Workspace) -> None:
    definition = labeling()
    first = workspace.engine().plan(definition, tickets(9))
    workspace.engine().submit(definition, first.submission_id)
    running = workspace.engine().plan(labeling(), tickets(9).sample(fraction=1, shuffle=True, seed=1).to_pandas())
    workspace.engine().submit(definition, running.submission_id)
    workspace.finish(definition, first.submission_id)
    settled = workspace.engine().plan(labeling(), tickets(9).to_arrow())
    workspace.engine().submit(definition, settled.submission_id)
    assert first.submission_id == running.submission_id == settled.submission_id
    assert len(workspace.emulator.books.batches) == 1
    assert len(billed(workspace)) == 9


def test_a_plan_that_is_known_leaves_no_files(workspace: Workspace) -> None:
    definition = labeling()
    workspace.run(definition, tickets(3))
    before = workspace.files()
    workspace.engine().plan(definition, tickets(3))
    assert workspace.files() == before


def test_kept_columns_are_those_of_the_latest_plan(workspace: Workspace) -> None:
    workspace.run(labeling(keep=["subject"]), tickets(3))
    definition = labeling(keep=["subject", "team"])
    status = workspace.run(definition, tickets(3).with_columns(team=pl.lit("north")))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 3)
    assert labels["team"].to_pylist() == ["north"] * 3
    assert len(billed(workspace)) == 3


def test_added_rows_pay_only_for_themselves(workspace: Workspace) -> None:
    definition = labeling()
    first = workspace.run(definition, tickets(5))
    second = workspace.run(definition, tickets(8))
    assert len(billed(workspace)) == len(set(billed(workspace))) == 8
    assert second.submission.reused == 5
    labels, _ = assert_total(workspace, definition, second.submission.submission_id, 8)
    assert len(labels) == 8
    assert second.submission.outcomes == {"succeeded": 8}
    assert second.submission.cost_usd < first.submission.cost_usd + second.submission.cost_usd
    third = workspace.run(definition, tickets(2))  # fewer rows: nothing to pay
    assert_total(workspace, definition, third.submission.submission_id, 2)
    assert third.submission.cost_usd == 0
    assert len(workspace.emulator.books.batches) == 2


def test_rows_that_come_back_are_the_latest_again_and_free(workspace: Workspace) -> None:
    definition = labeling()
    workspace.run(definition, tickets(3))
    workspace.run(definition, tickets(3, start=3))
    back = workspace.run(definition, tickets(3))
    latest = workspace.engine().latest("ticket_labels")
    assert latest is not None
    assert latest.submission_id == back.submission.submission_id
    labels, _ = assert_total(workspace, definition, latest.submission_id, 3)
    assert texts(labels) == ["t0", "t1", "t2"]
    assert len(billed(workspace)) == 6


def test_a_rejected_row_is_not_paid_again_when_its_rows_come_back(workspace: Workspace) -> None:
    workspace.emulator.close()
    with_refusals = Workspace.__new__(Workspace)  # the same deployment over an emulator that answers badly
    from dagster_llm_batch.testing.emulator import Emulator

    with Emulator(answer=lambda _body, _url: "not JSON") as emulator:
        with_refusals.__init__(workspace.tmp_path, emulator)  # type: ignore[misc]
        definition = labeling()
        with_refusals.run(definition, tickets(2))
        paid = len(billed(with_refusals))
        with_refusals.run(definition, tickets(2, start=2))
        again = with_refusals.run(definition, tickets(2))
        assert len(billed(with_refusals)) == 2 * paid
        _, rejects = assert_total(with_refusals, definition, again.submission.submission_id, 2)
        assert set(rejects["llm_outcome"].to_pylist()) == {"invalid"}
        assert again.submission.outcomes == {"invalid": 2}


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": "openai/gpt-4o-mini"},
    "params": {"params": {"max_tokens": 50, "temperature": 0.5}},
    "system": {"prompt": Prompt(system="You sort mail.", user="{{ subject }}\n\n{{ body }}")},
    "user": {"prompt": Prompt(system="You label support tickets.", user="{{ subject }}: {{ body }}")},
    "examples": {
        "prompt": Prompt(
            system="You label support tickets.",
            user="{{ subject }}\n\n{{ body }}",
            examples=[("Hi", '{"topic": "bug"}')],
        )
    },
    "response": {"response": OtherLabel},
    "endpoint": {"endpoint": "responses", "params": {"max_output_tokens": 50}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_configuration_never_gets_the_old_answers(workspace: Workspace, change: str) -> None:
    old, new = labeling(), labeling(**CHANGES[change])
    first = workspace.run(old, tickets(4))
    second = workspace.run(new, tickets(4))
    assert second.submission.submission_id != first.submission.submission_id
    assert second.submission.reused == 0
    assert len(workspace.emulator.books.batches) == 2
    assert len(set(billed(workspace))) == 8
    labels, _ = assert_total(workspace, new, second.submission.submission_id, 4)
    assert set(labels["llm_batch_id"].to_pylist()) == set(second.batch_ids)
    back = workspace.run(old, tickets(4))  # and back: free, and the latest
    assert len(workspace.emulator.books.batches) == 2
    latest = workspace.engine().latest("ticket_labels")
    assert latest is not None
    assert latest.submission_id == back.submission.submission_id
    labels, _ = assert_total(workspace, old, latest.submission_id, 4)
    assert set(labels["llm_batch_id"].to_pylist()) == set(first.batch_ids)


def test_another_account_never_gets_the_old_answers_and_another_key_does(workspace: Workspace) -> None:
    definition = labeling()
    workspace.run(definition, tickets(2))
    workspace.providers = {"openai": workspace.openai(account="other")}
    workspace.run(definition, tickets(2))
    assert len(workspace.emulator.books.batches) == 2
    workspace.providers = {"openai": workspace.openai(account="other", api_key=DEFAULT_KEY)}
    workspace.run(definition, tickets(2))
    assert len(workspace.emulator.books.batches) == 2


def test_a_batch_in_flight_is_not_called_lost_by_another_account(tmp_path: Path) -> None:
    from dagster_llm_batch.errors import ConfigError

    with Emulator(keys={"sk-a": "a", "sk-b": "b"}) as emulator:
        workspace = Workspace(tmp_path, emulator)
        workspace.providers = {"openai": workspace.openai(api_key="sk-a", account="a")}
        definition = labeling()
        first = workspace.engine().plan(definition, tickets(3))
        workspace.engine().submit(definition, first.submission_id)
        emulator.settle()
        workspace.providers = {"openai": workspace.openai(api_key="sk-b", account="b")}
        for verb in (workspace.engine().advance, workspace.engine().submit):
            with pytest.raises(ConfigError, match="account 'a'; the configured account 'b'"):
                verb(definition, first.submission_id)
        workspace.providers = {"openai": workspace.openai(api_key="sk-a", account="a")}
        assert workspace.finish(definition, first.submission_id).submission.outcomes == {"succeeded": 3}
        assert len(emulator.books.batches) == 1


def test_a_change_while_running_stops_nothing_that_was_sent_and_sends_no_more_of_the_old(workspace: Workspace) -> None:
    old = labeling(limits=Limits(max_requests_per_batch=2))
    first = workspace.engine().plan(old, tickets(4))
    workspace.engine().submit(old, first.submission_id)
    new = labeling(model="openai/gpt-4o-mini")
    status = workspace.run(new, tickets(4))
    assert_total(workspace, new, status.submission.submission_id, 4)
    settled = workspace.engine().advance(old, first.submission_id)
    assert settled.is_settled
    assert settled.submission.state.value == "canceled"
    assert len(workspace.emulator.books.batches) == 3
    assert_total(workspace, old, first.submission_id, 4)


def test_a_superseded_submission_that_was_not_sent_never_is(workspace: Workspace) -> None:
    old, new = labeling(), labeling(model="openai/gpt-4o-mini")
    first = workspace.engine().plan(old, tickets(3))
    workspace.run(new, tickets(3))
    settled = workspace.engine().advance(old, first.submission_id)
    assert settled.submission.outcomes == {"canceled": 3}
    assert len(workspace.emulator.books.batches) == 1


class CountedLabel(TicketLabel):
    """A response with a field of a name that usage has too."""

    input_tokens: int


def test_a_response_may_have_a_field_that_is_called_as_usage_calls_its_own(workspace: Workspace) -> None:
    definition = labeling(response=CountedLabel)
    status = workspace.run(definition, tickets(3))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 3)
    assert len(labels) == 3
    assert labels["input_tokens"].null_count == 0
    assert min(labels["llm_input_tokens"].to_pylist()) > 5  # of the prompt


def test_lines_of_all_batches_are_stored_where_the_first_is_not_read(workspace: Workspace) -> None:
    old = labeling(limits=Limits(max_requests_per_batch=1))
    first = workspace.engine().plan(old, tickets(12))
    forget_definition(workspace, first)
    workspace.engine().submit(old, first.submission_id)
    workspace.emulator.settle()
    with pytest.raises(ConfigError, match="was made with another model"):
        workspace.engine().collect(
            labeling(response=OtherLabel, limits=Limits(max_requests_per_batch=1)), first.submission_id
        )
    assert sum(name.endswith(".raw.jsonl.zst") for name in workspace.files()) == 12
    assert workspace.finish(old, first.submission_id).submission.outcomes == {"succeeded": 12}


def test_again_asks_only_what_has_no_label(workspace: Workspace) -> None:
    from dagster_llm_batch.testing.emulator import RowFault

    workspace.emulator.inject(RowFault(containing="number 1?"))
    definition = labeling()
    first = workspace.run(definition, tickets(3))
    assert first.submission.outcomes == {"succeeded": 2, "errored": 1}
    workspace.emulator.clear_faults()
    assert workspace.engine().plan(definition, tickets(3)).submission_id == first.submission.submission_id
    second = workspace.run(definition, tickets(3), again=True)
    assert second.submission.attempt == 2
    assert len(billed(workspace)) == len(set(billed(workspace))) == 3
    labels, _ = assert_total(workspace, definition, second.submission.submission_id, 3)
    assert len(labels) == 3


def test_a_submission_that_was_refused_as_a_whole_is_sent_again_without_being_asked(workspace: Workspace) -> None:
    from dagster_llm_batch.testing.emulator import BatchFault

    workspace.emulator.inject(BatchFault(kind="fails", code="invalid_request", message="model not found"))
    definition = labeling()
    first = workspace.run(definition, tickets(3))
    assert first.submission.outcomes == {"errored": 3}
    assert first.submission.cost_usd == 0
    workspace.emulator.clear_faults()
    second = workspace.run(definition, tickets(3))
    assert second.submission.outcomes == {"succeeded": 3}


def test_a_later_partition_or_namespace_shares_nothing(workspace: Workspace) -> None:
    definition = labeling()
    workspace.run(definition, tickets(2), partition="a")
    workspace.run(definition, tickets(2), partition="b")
    other = workspace.engine("branch")
    submission = other.plan(definition, tickets(2), partition="a")
    assert len(workspace.emulator.books.batches) == 2
    assert submission.reused == 0
    assert [s.namespace for s in other.ledger.submissions.list_all("branch")] == ["branch"]
    assert workspace.engine("branch").latest("ticket_labels", "b") is None
    other.submit(definition, submission.submission_id)
    tags = [batch.metadata["dagster_llm_batch"] for batch in workspace.emulator.books.batches]
    owners = [tag.rsplit("-", 1)[0] for tag in tags]
    assert owners[0] == owners[1] != owners[2]
    assert other.ledger.shards.in_flight("test") == []
    assert len(other.ledger.shards.in_flight("branch")) == 1


# reading again -------------------------------------------------------------------------------------------------------


def test_a_changed_validator_is_applied_again_without_a_call(workspace: Workspace) -> None:
    calls: list[int] = []

    def definition(least: int) -> Labeling:
        from pydantic import field_validator

        class Checked(TicketLabel):
            @field_validator("urgency")
            @classmethod
            def enough(cls, value: int) -> int:
                calls.append(value)
                if value < least:
                    raise ValueError("not urgent enough")
                return value

        Checked.__name__ = "TicketLabel"
        return labeling(response=Checked)

    first = workspace.run(definition(1), tickets(12))
    assert first.submission.outcomes == {"succeeded": 12}
    wire_calls = len(workspace.emulator.books.calls)
    engine = workspace.engine()
    reread = engine.labels(definition(4), first.submission.submission_id, reread=True)
    urgencies = reread.labels["urgency"].to_pylist()
    assert min(urgencies) >= 4
    assert 0 < len(reread.rejects) == 12 - len(urgencies)
    assert "not urgent enough" in reread.rejects["llm_reason"].to_pylist()[0]
    assert len(engine.labels(definition(1), first.submission.submission_id, reread=True).labels) == 12
    assert len(workspace.emulator.books.calls) == wire_calls


def test_a_computed_column_that_is_new_reaches_reused_rows(workspace: Workspace) -> None:
    from pydantic import computed_field

    class Derived(TicketLabel):
        """The response of most tests."""

        @computed_field  # type: ignore[prop-decorator]
        @property
        def is_urgent(self) -> bool:
            return self.urgency > 3

    Derived.__name__ = "TicketLabel"
    workspace.run(labeling(), tickets(4))
    definition = labeling(response=Derived)
    status = workspace.run(definition, tickets(6))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 6)
    assert labels["is_urgent"].to_pylist() == [urgency > 3 for urgency in labels["urgency"].to_pylist()]
    assert len(billed(workspace)) == 6


def test_labels_of_a_submission_in_flight_are_refused(workspace: Workspace) -> None:
    from dagster_llm_batch.errors import LLMBatchError

    definition = labeling()
    submission = workspace.engine().plan(definition, tickets(2))
    with pytest.raises(LLMBatchError, match="is not complete; it has no labels yet"):
        workspace.engine().labels(definition, submission.submission_id)


# money ---------------------------------------------------------------------------------------------------------------


def test_the_users_own_price_goes_before_the_book(workspace: Workspace) -> None:
    definition = labeling(
        model="openai/in-house", spend=Spend(price=TokenPrice(Decimal(1), Decimal(2))), max_cost_usd=1, response=None
    )
    status = workspace.run(definition, tickets(3))
    tokens = [e for e in workspace.emulator.books.executions if e.billed]
    expected = sum(e.input_tokens * 1 + e.output_tokens * 2 for e in tokens) / Decimal(1_000_000)
    assert status.submission.cost_usd == expected
    assert status.submission.estimated_usd > 0


def test_the_cost_of_an_unknown_price_is_null(workspace: Workspace) -> None:
    definition = labeling(model="openai/in-house")
    status = workspace.run(definition, tickets(3))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 3)
    assert status.submission.cost_usd is None
    assert status.submission.estimated_usd is None
    assert labels["llm_cost_usd"].null_count == 3
    assert set(labels["llm_price_basis"].to_pylist()) == {"unknown"}
