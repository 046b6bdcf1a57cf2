"""Near copies in a cascade, over the emulator: which model is asked which row, and whose labels are shared."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from test_near_copies import TOPICS, place_of, rows
from workspace import Workspace, labeling

from dagster_llm_batch.checks import CHECKS, Checks, PartitionFacts
from dagster_llm_batch.core.cascade import Cascade, Precision, Recall, Rolling
from dagster_llm_batch.core.levels import percent
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.reuse import Near, Reuse
from dagster_llm_batch.core.shares import Shares
from dagster_llm_batch.engine import Labeling, Resend, Spend, Status
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.request_files import levels_of, split_requests
from dagster_llm_batch.files.share_files import shares_of
from dagster_llm_batch.label_stats import LabelStats
from dagster_llm_batch.loop.budget import NO_ROOM_LEFT, Allowance
from dagster_llm_batch.loop.submit_queue import drop
from dagster_llm_batch.states import Reason, ShardState
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.testing.emulator import Emulator, RowFault

CHEAP, ORACLE = "openai/gpt-4o-mini", "openai/gpt-4o"
PRICES = Spend(price=TokenPrice(input_usd=Decimal("0.001"), output_usd=Decimal("0.001")))
NEAR: dict[str, Any] = {"text": "body", "target": "topic", "error": 0.1, "sample": 60}


def definition(near: dict[str, Any] | None = None, **cascade: Any) -> Labeling:
    own = {"agreement": 0.8, "score": "urgency", "sample": 60, "params": {"max_tokens": 50}}
    return labeling(
        model=CHEAP,
        prompt=Prompt(user="{{ body }}"),
        cascade=Cascade(ORACLE, "topic", **{**own, **cascade}),
        resend=Resend(reuse=Reuse(near=Near(**{**NEAR, **(near or {})}))),
        spend=PRICES,
    )


def by_group(body: Any, _url: str) -> Any:
    """Answer all copies alike. The model gives no valid reply for a quarter of the groups."""
    group, _ = place_of(body)
    if group % 4 == 0 and body["model"] == "gpt-4o-mini":
        return "no JSON"
    return {"topic": TOPICS[group % 3], "urgency": 5}


def by_copy(body: Any, url: str) -> Any:
    """Let the oracle answer copies in different ways."""
    group, copy = place_of(body)
    other = copy if body["model"] == "gpt-4o" else 0
    return {"topic": TOPICS[(group + other) % 3], "urgency": 5}


@pytest.fixture
def workspace(tmp_path: Any) -> Any:
    with Emulator(answer=by_group) as emulator:
        yield Workspace(tmp_path, emulator)


def asked(workspace: Workspace, model: str) -> Counter[tuple[int, int]]:
    """Count how often each row was sent to a model."""
    engine, found = workspace.engine(), Counter[tuple[int, int]]()
    for submission in engine.ledger.submissions.list_all("test"):
        for shard in engine.ledger.shards.of_submission(submission.submission_id):
            if shard.batch.sent_at is not None and shard.asked_of == model:
                found.update(place_of(json.loads(line)) for line in engine.payloads.lines(shard.path))
    return found


def shares_in(workspace: Workspace, status: Status) -> Shares:
    shares = shares_of(workspace.engine().payloads, status.submission)
    assert shares is not None
    return shares


def topics(workspace: Workspace, own: Labeling, submission: Submission) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the labels by group and copy."""
    labels = workspace.engine().labels(own, submission.submission_id).labels.to_pylist()
    return {tuple(map(int, row["ticket_id"][1:].split("c"))): row for row in labels}  # type: ignore[misc]


def test_copies_share_the_final_labels_of_their_leaders_and_the_model_is_asked_no_copy(workspace: Workspace) -> None:
    own = definition()
    status = workspace.run(own, rows(120, 4))
    assert status.submission.outcomes == {"succeeded": 480}
    shares = shares_in(workspace, status)
    assert (shares.rows, shares.sample, shares.wrong, shares.passes) == (360, 60, 0, True)
    cheap, oracle = asked(workspace, CHEAP), asked(workspace, ORACLE)
    assert len(cheap) == 120, "one row of each group"
    assert {group for group, _ in cheap} == set(range(120))
    copies = {place for place in oracle if place not in cheap}
    assert len(copies) == 60
    assert set((cheap + oracle).values()) <= {1, 2}
    found = topics(workspace, own, status.submission)
    for (group, copy), row in found.items():
        assert row["topic"] == TOPICS[group % 3], "the oracle's"
        is_shared = (group, copy) not in cheap and (group, copy) not in copies
        assert (row["llm_reuse"] == "near") is is_shared
        assert (row["llm_why"] == "copy") is ((group, copy) not in cheap)
        assert (row["llm_sample_probability"] is None) is is_shared
        if (group, copy) in copies:
            assert (row["llm_level"], row["llm_sample_probability"]) == ("oracle", pytest.approx(60 / 360))
            assert row["llm_cheap_label"] is None
    # The sample of the cascade is drawn from the leaders alone, so a copy does not make it more probable.
    accepted = {row["llm_sample_probability"] for row in found.values() if row["llm_why"] == "accepted"}
    assert len(accepted) == 1
    assert accepted.pop() == pytest.approx(60 / 120)


def test_the_oracle_answers_all_copies_if_too_many_audited_ones_differ(tmp_path: Any) -> None:
    with Emulator(answer=by_copy) as emulator:
        workspace, own = Workspace(tmp_path, emulator), definition()
        status = workspace.run(own, rows(120, 4))
        assert status.submission.outcomes == {"succeeded": 480}
        shares = shares_in(workspace, status)
        assert not shares.passes
        assert len(asked(workspace, CHEAP)) == 120
        oracle = asked(workspace, ORACLE)
        assert set(oracle.values()) == {1}
        for (group, copy), row in topics(workspace, own, status.submission).items():
            assert row["llm_reuse"] is None
            if row["llm_why"] == "copy":
                assert (row["topic"], row["llm_level"]) == (TOPICS[(group + copy) % 3], "oracle")
        assert sum(row["llm_why"] == "copy" for row in topics(workspace, own, status.submission).values()) == 360


def test_a_copy_is_asked_of_the_oracle_if_its_leader_has_no_label(tmp_path: Any) -> None:
    lost: set[tuple[int, int]] = set()

    def answer(body: Any, url: str) -> Any:
        # Neither model answers the leader of each twentieth group.
        return "no JSON" if place_of(body) in lost else by_group(body, url)

    with Emulator(answer=answer) as emulator:
        workspace, own = Workspace(tmp_path, emulator), definition({"error": 0.3})
        engine = workspace.engine()
        submission = engine.plan(own, rows(120, 4), partition="")
        for shard in engine.ledger.shards.of_submission(submission.submission_id):
            if shard.asked_of == CHEAP:
                places = [place_of(json.loads(line)) for line in engine.payloads.lines(shard.path)]
                lost |= {place for place in places if place[0] % 20 == 0}
        assert len(lost) == 6
        engine.submit(own, submission.submission_id)
        status = workspace.finish(own, submission.submission_id)
        assert sum(status.submission.outcomes.values()) == 480
        found = topics(workspace, own, status.submission)
        assert {(g, c) for g in range(120) for c in range(4)} - found.keys() == lost
        for (group, _), row in found.items():
            if group % 20 == 0:
                assert (row["llm_reuse"], row["llm_level"], row["llm_why"]) == (None, "oracle", "copy")
                assert row["llm_sample_probability"] == 1.0, "all of these are asked, drawn or not"


def test_copies_of_a_lost_leader_were_asked_with_certainty_though_all_of_them_were_drawn(tmp_path: Any) -> None:
    lost: set[tuple[int, int]] = set()

    def answer(body: Any, url: str) -> Any:
        return "no JSON" if place_of(body) in lost else by_group(body, url)

    with Emulator(answer=answer) as emulator:
        workspace, own = Workspace(tmp_path, emulator), definition({"error": 0.4})
        engine = workspace.engine()
        submission = engine.plan(own, rows(120, 2), partition="")
        places: dict[str, set[tuple[int, int]]] = {CHEAP: set(), ORACLE: set()}
        for shard in engine.ledger.shards.of_submission(submission.submission_id):
            places[shard.asked_of] |= {place_of(json.loads(line)) for line in engine.payloads.lines(shard.path)}
        drawn = {group for group, _ in places[ORACLE] - places[CHEAP]}
        chosen = set(sorted(drawn)[:3])
        lost |= {place for place in places[CHEAP] if place[0] in chosen}
        engine.submit(own, submission.submission_id)
        status = workspace.finish(own, submission.submission_id)
        assert shares_in(workspace, status).passes
        found = topics(workspace, own, status.submission)
        chances = {place[0]: row["llm_sample_probability"] for place, row in found.items() if row["llm_why"] == "copy"}
        assert {chances[group] for group in chosen} == {1.0}
        assert {round(chances[group], 9) for group in drawn - chosen} == {60 / 120}


def test_the_plan_reserves_the_oracle_of_held_copies_and_states_the_joint_guarantee(workspace: Workspace) -> None:
    own = definition()
    preview = workspace.engine().preview(own, rows(120, 4))
    assert preview.shares is not None
    assert preview.levels is not None
    assert preview.oracle is not None
    assert preview.to_send == 120 + 60 + 60
    assert preview.oracle.later_most == 60 + 300
    assert preview.held_usd is not None
    assert preview.oracle.reserved_usd is not None
    assert preview.held_usd == preview.oracle.reserved_usd / 360 * 300
    assert preview.oracle.later <= 60
    text = preview.shares.promise_text
    assert text.startswith(f"With a confidence of 90%, at least 70% of the labels agree with {ORACLE} on 'topic'.")
    assert "The cascade guarantees 80% for the rows that are no near copies, and an audit 70% for the copies" in text
    assert "300 requests are saved at both models" in preview.shares.plan_text
    assert not asked(workspace, CHEAP)


def test_the_reserve_for_copies_stays_while_the_oracle_is_asked_the_unsure_rows(workspace: Workspace) -> None:
    engine, own = workspace.engine(), definition()
    submission = engine.plan(own, rows(120, 4), partition="")
    planned = submission.reserved_usd
    engine.submit(own, submission.submission_id)
    workspace.emulator.settle()
    second = workspace.engine().advance(own, submission.submission_id).submission
    assert (second.waves, second.is_settled) == (2, False)
    assert planned is not None
    assert second.reserved_usd == planned / 360 * 300
    assert workspace.finish(own, submission.submission_id).submission.waves == 2


def test_rows_of_a_later_day_join_the_leaders_and_no_row_is_asked_twice(workspace: Workspace) -> None:
    own = definition()
    workspace.run(own, rows(120, 3))
    cheap, oracle = asked(workspace, CHEAP), asked(workspace, ORACLE)
    status = workspace.run(own, rows(120, 4))
    assert status.submission.outcomes == {"succeeded": 480}
    assert asked(workspace, CHEAP) == cheap, "the leaders stay"
    after = asked(workspace, ORACLE)
    assert set(after.values()) == {1}
    assert oracle.keys() <= after.keys()
    found = topics(workspace, own, status.submission)
    assert {row["topic"] == TOPICS[group % 3] for (group, _), row in found.items()} == {True}
    # Audited copies stand for all, and those that only the first day audited do not count twice.
    chances = [row["llm_sample_probability"] for row in found.values() if row["llm_why"] == "copy"]
    assert sum(1 / chance for chance in chances if chance is not None) == pytest.approx(360)


def test_the_same_rows_are_the_same_submission_and_another_guarantee_shares_again(workspace: Workspace) -> None:
    first = workspace.run(definition(), rows(120, 4))
    again = workspace.run(definition(), rows(120, 4))
    assert again.submission.submission_id == first.submission.submission_id
    other = workspace.run(definition(agreement=0.85), rows(120, 4))
    assert other.submission.submission_id != first.submission.submission_id
    assert shares_in(workspace, other).look == 2
    assert other.submission.outcomes == {"succeeded": 480}


def test_a_sample_of_the_same_size_that_is_drawn_from_the_copies_too_is_another_look(workspace: Workspace) -> None:
    found = []
    # An audit as large as all copies saves nothing, so the cascade labels these like all rows.
    for sample in (60, 1_000):
        status = workspace.run(definition({"sample": sample}), rows(120, 4))
        levels = levels_of(workspace.engine().payloads, status.submission)
        assert levels is not None
        found.append((levels.rows, levels.sample, levels.look))
    assert found == [(120, 60, 1), (480, 60, 2)]


def test_few_copies_are_labeled_by_the_cascade_like_all_rows(workspace: Workspace) -> None:
    own = definition()
    status = workspace.run(own, rows(60, 2))
    assert shares_in(workspace, status).asks_all
    assert len(asked(workspace, CHEAP)) == 120
    levels = levels_of(workspace.engine().payloads, status.submission)
    assert levels is not None
    assert levels.rows == 120
    found = topics(workspace, own, status.submission)
    assert {row["llm_why"] for row in found.values()} <= {"accepted", "sampled", "escalated", "invalid"}
    assert shares_in(workspace, status).promise_text == levels.promise_text


def test_erased_leaders_take_their_label_from_their_copies(workspace: Workspace) -> None:
    engine, own = workspace.engine(), definition()
    status = workspace.run(own, rows(120, 4))
    before = topics(workspace, own, status.submission)
    shared = next(row for row in before.values() if row["llm_reuse"] == "near")
    [leader] = [
        row["ticket_id"]
        for row in before.values()
        if row["llm_request_id"] == shared["llm_request_id"] and row["llm_reuse"] is None
    ]
    engine.eraser.add_tombstones(own.asset, [leader], None)
    assert engine.eraser.erase(own.asset) == []
    left = engine.ledger.submissions.get(status.submission.submission_id)
    assert sum(left.outcomes.values()) == left.requests == 479
    after = engine.labels(own, status.submission.submission_id)
    keys = {row["ticket_id"] for row in after.labels.to_pylist()}
    assert leader not in keys
    assert shared["ticket_id"] not in keys
    assert shared["ticket_id"] in {row["ticket_id"] for row in after.rejects.to_pylist()}


YES_NO = ("billing", "bug")


def yes_or_no(body: Any, _url: str) -> Any:
    group, _ = place_of(body)
    return {"topic": YES_NO[group % 2], "urgency": 1 + group % 5}


@pytest.mark.parametrize(
    ("guarantee", "is_shared"),
    [
        (Precision(0.5, yes="billing"), True),
        (Recall(0.5, yes="billing"), True),
        # The audit has too few yes for these.
        (Precision(0.999, yes="billing"), False),
        (Recall(0.999, yes="billing"), False),
    ],
)
def test_copies_share_in_a_filter_only_if_the_audit_keeps_its_precision_or_recall(
    tmp_path: Any, guarantee: Precision | Recall, is_shared: bool
) -> None:
    schema = {
        "type": "object",
        "properties": {"topic": {"type": "string", "enum": [*YES_NO]}, "urgency": {"type": "integer"}},
        "required": ["topic", "urgency"],
    }
    cascade = Cascade(ORACLE, "topic", score="urgency", params={"max_tokens": 50}, guarantee=guarantee)
    own = replace(definition({"sample": 110, "error": 0.03}), response=schema, cascade=cascade)
    with Emulator(answer=yes_or_no) as emulator:
        workspace = Workspace(tmp_path, emulator)
        status = workspace.run(own, rows(120, 4))
        assert status.submission.outcomes == {"succeeded": 480}
        shares = shares_in(workspace, status)
        assert (shares.errors, shares.passes) == (0, is_shared)
        assert shares.errors_allowed is not None
        assert (shares.errors_allowed >= 0) is is_shared
        found = topics(workspace, own, status.submission)
        assert any(row["llm_reuse"] == "near" for row in found.values()) is is_shared
        assert {row["topic"] == YES_NO[group % 2] for (group, _), row in found.items()} == {True}
        stated = f"With a confidence of 90%, at least {percent(guarantee.share - 0.03)} of the"
        assert stated in shares.promise_text
        assert ("too few yes for any" in shares.result_text) is not is_shared


def test_guarantees_that_cannot_be_stated_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="name the same in both"):
        definition({"target": "urgency"}, score="urgency")
    with pytest.raises(ConfigError, match="leave no confidence in both"):
        definition({"confidence": 0.4}, confidence=0.5)
    with pytest.raises(ConfigError, match="leaves nothing of the cascade's share"):
        definition({"error": 0.8})


def test_rolling_thresholds_come_from_the_rows_that_are_no_copies(workspace: Workspace) -> None:
    own = definition(calibrate=Rolling(rows=60, audit=0.2))
    for day in range(3):
        status = workspace.run(own, rows(120, 4, start=1_000 * day), partition=f"2026-01-0{day + 1}")
        assert status.submission.outcomes == {"succeeded": 480}
    levels = levels_of(workspace.engine().payloads, status.submission)
    assert levels is not None
    assert levels.is_rolling
    assert levels.rows == 120
    found = topics(workspace, own, status.submission)
    assert sum(row["llm_reuse"] == "near" for row in found.values()) == 300
    assert {row["topic"] == TOPICS[group % 3] for (group, _), row in found.items()} == {True}


def test_copies_of_answered_leaders_are_reserved_with_the_cost_of_their_tokens(workspace: Workspace) -> None:
    own = definition()
    workspace.run(own, rows(120, 3))

    def reserved(groups: int) -> Decimal:
        """Return the reserve for a request to the oracle."""
        preview = workspace.engine().preview(own, rows(groups, 6))
        assert preview.oracle is not None
        assert preview.oracle.reserved_usd is not None
        assert preview.shares is not None
        each = preview.oracle.reserved_usd / preview.oracle.later_most
        assert preview.held_usd == each * len(preview.shares.held)
        return each

    # All new rows of the first are copies, so the model is asked nothing.
    assert float(reserved(120)) == pytest.approx(float(reserved(130)), rel=0.05)


def test_if_too_few_audited_rows_are_left_after_an_erasure_the_oracle_answers_all_copies(workspace: Workspace) -> None:
    engine, own = workspace.engine(), definition()
    submission = engine.plan(own, rows(120, 4), partition="")
    shares = shares_of(engine.payloads, submission)
    assert shares is not None
    audited = set(shares.audited.to_pylist())
    manifest = engine.payloads.read_table(submission.manifest, ["ticket_id", "llm_request_id"]).to_pylist()
    going = [row["ticket_id"] for row in manifest if row["llm_request_id"] in audited][:55]
    engine.submit(own, submission.submission_id)
    engine.eraser.add_tombstones(own.asset, going, None)
    workspace.emulator.settle()
    engine.eraser.erase(own.asset)
    status = workspace.finish(own, submission.submission_id)
    left = shares_in(workspace, status)
    assert (left.wrong, left.passes, len(left.shared)) == (0, False, 0)
    assert status.submission.outcomes == {"succeeded": 480 - 55}
    assert set(asked(workspace, ORACLE).values()) == {1}


def test_copies_that_were_erased_after_the_decision_do_not_break_the_guarantee_of_the_other_rows(
    workspace: Workspace,
) -> None:
    engine, own = workspace.engine(), definition()
    status = workspace.run(own, rows(120, 4))
    copies = [row for row in topics(workspace, own, status.submission).values() if row["llm_why"] == "copy"]
    engine.eraser.add_tombstones(own.asset, [row["ticket_id"] for row in copies[:200]], None)
    assert engine.eraser.erase(own.asset) == []
    shares = shares_in(workspace, status)
    assert (shares.rows, shares.rows_left) == (360, 160)
    stats = LabelStats(own)
    for part in engine.label_batches(own, status.submission.submission_id):
        stats.add(part)
    facts = PartitionFacts(
        stats=stats,
        rejects=stats.explain_rejects([]),
        status=engine.status(status.submission.submission_id),
        labeling=own,
        wanted=Checks(),
        levels=engine.deployment.levels(own, status.submission),
        shares=shares,
    )
    [promise] = [check for check in CHECKS if check.name == "promise"]
    assert stats.labeled == 480 - 200
    judged = promise.judge(promise, facts)
    assert judged.passed, judged.description


@pytest.mark.parametrize("lost", ["copies", "sample"])
def test_only_the_lost_sample_makes_the_labels_of_the_model_useless(workspace: Workspace, lost: str) -> None:
    engine, own = workspace.engine(), replace(definition(), max_cost_usd=100)
    submission = engine.plan(own, rows(120, 4), partition="")
    deployment, ledger, payloads = engine.deployment, engine.ledger, engine.payloads
    [shard] = [one for one in ledger.shards.of_submission(submission.submission_id) if one.asked_of == ORACLE]
    shares = shares_of(payloads, submission)
    assert shares is not None
    audited = set(shares.audited.to_pylist())
    gone, kept = split_requests(payloads, shard, 9, lambda one, _: (one in audited) is (lost == "copies"))
    ledger.shards.split(shard, gone, kept)
    assert (gone.requests, kept.requests) == (60, 60)
    drop(deployment, [gone], Reason.OVER_BUDGET, NO_ROOM_LEFT)
    left = [one for one in ledger.shards.of_submission(submission.submission_id) if one.state is ShardState.PLANNED]
    turns = [*Allowance(own, deployment, None).give_out(left, set())]  # type: ignore[arg-type]
    [pick] = [pick for turn, pick in turns if turn[0].asked_of == CHEAP]
    assert (pick.over_budget is not None) is (lost == "sample")
    assert count_requests(pick.going) == (0 if lost == "sample" else 120)


def test_failures_of_the_model_are_left_to_the_oracle_with_many_held_copies(workspace: Workspace) -> None:
    """With so many held copies, the models are asked less often than there are requests."""
    engine, own = workspace.engine(), definition()
    submission_id = engine.plan(own, rows(120, 8)).submission_id
    [cheap] = [shard for shard in engine.status(submission_id).shards if shard.asked_of == CHEAP]
    refused = json.loads(next(iter(engine.payloads.lines(cheap.path))))["custom_id"]
    workspace.emulator.inject(RowFault(custom_ids=[refused]))
    while not engine.status(submission_id).is_settled:
        engine.advance(own, submission_id)
        workspace.emulator.settle()
        status, [progress] = engine.status(submission_id), engine.ledger.submissions.progress("test")
        assert (status.failed, progress.failed) == (0, 0)
    assert status.submission.to_answer < status.submission.requests
    assert sum(shard.batch.failed or 0 for shard in status.shards) == 1
    assert status.submission.outcomes == {"succeeded": 960}
