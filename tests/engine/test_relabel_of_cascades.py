"""Older labels in a cascade, over the emulator: which model is asked which row, and whose labels stay."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from test_near_copies import rows as copies
from test_near_copies_of_cascades import by_group, topics
from test_relabel import FIRST, SECOND, THIRD, TOPICS, decision, labels, number_of, reproducible, rows
from workspace import Workspace, labeling

from dagster_llm_batch.checks import CHECKS, CheckOutcome, Checks, PartitionFacts
from dagster_llm_batch.core.cascade import Cascade, Precision, Recall, Rolling
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.reuse import Near, Relabel, Reuse
from dagster_llm_batch.engine import Labeling, Resend, Spend, Status
from dagster_llm_batch.errors import BudgetError, ConfigError, PayloadError
from dagster_llm_batch.files.request_files import CALIBRATION, levels_of
from dagster_llm_batch.files.shard_files import OLDER, RELABELS
from dagster_llm_batch.files.share_files import relabels_of
from dagster_llm_batch.label_stats import LabelStats
from dagster_llm_batch.testing.emulator import Emulator

CHEAP, ORACLE = "openai/gpt-4o-mini", "openai/gpt-4o"
PRICES = Spend(price=TokenPrice(input_usd=Decimal("0.001"), output_usd=Decimal("0.001")))
RELABEL: dict[str, Any] = {"target": "topic", "share": 0.1, "sample": 60}


def definition(prompt: Prompt = SECOND, relabel: dict[str, Any] | None = None, **changes: Any) -> Labeling:
    """Return a cascade whose older labels may stay. `relabel={}` leaves the setting out."""
    settings = {**RELABEL, **(relabel or {})}
    resend = Resend() if relabel == {} else Resend(reuse=Reuse(relabel=Relabel(**settings)))
    own = {"agreement": 0.8, "score": "urgency", "sample": 60, "params": {"max_tokens": 50}}
    cascade = Cascade(ORACLE, "topic", **{**own, **changes.pop("cascade", {})})
    usual = {"model": CHEAP, "prompt": prompt, "cascade": cascade, "resend": resend, "spend": PRICES}
    return labeling(**{**usual, **changes})


def is_oracles(body: Any) -> bool:
    return bool(body["model"] == "gpt-4o")


def by_both(body: Any, _url: str) -> Any:
    """Answer every prompt alike. The model gives no valid reply for a quarter of the rows."""
    number = number_of(body)
    if number % 4 == 0 and not is_oracles(body):
        return "no JSON"
    return {"topic": TOPICS[number % 3], "urgency": 5}


def changing(share: float) -> Any:
    """Answer the first prompt as `by_both`, and let the oracle change its answers for this share of the rows."""

    def answer(body: Any, url: str) -> Any:
        number, usual = number_of(body), by_both(body, url)
        if "Label it:" in str(body) or not is_oracles(body) or number % 1_000 >= 1_000 * share:
            return usual
        return {**usual, "topic": TOPICS[(number + 1) % 3]}

    return answer


@pytest.fixture
def workspace(tmp_path: Any) -> Any:
    with Emulator(answer=by_both) as emulator:
        yield reproducible(tmp_path, emulator)


def sent_to(workspace: Workspace, status: Status, model: str) -> Counter[int]:
    """Count how often each row was sent to a model in a submission."""
    engine, found = workspace.engine(), Counter[int]()
    for shard in engine.ledger.shards.of_submission(status.submission.submission_id):
        if shard.batch.sent_at is not None and shard.asked_of == model:
            found.update(number_of(json.loads(line)) for line in engine.payloads.lines(shard.path))
    return found


def test_the_oracle_is_asked_a_sample_and_the_other_labels_of_both_models_stay(workspace: Workspace) -> None:
    before, after = definition(FIRST), definition()
    first = workspace.run(before, rows(300))
    older = labels(workspace, before, first)
    assert {row["llm_level"] for row in older.values()} == {"cheap", "oracle"}
    status = workspace.run(after, rows(300))
    assert status.submission.outcomes == {"succeeded": 300}
    assert not sent_to(workspace, status, CHEAP)
    sampled = sent_to(workspace, status, ORACLE)
    assert (len(sampled), set(sampled.values())) == (60, {1})
    known = decision(workspace, status)
    assert (known.rows, known.sample, known.wrong, known.passes) == (300, 60, 0, True)
    found = labels(workspace, after, status)
    assert {*found[0]} == {*older[0]}
    own = {"llm_reuse", "llm_run_id", "llm_level", "llm_why", "llm_score", "llm_cheap_label", "llm_sample_probability"}
    for number, row in found.items():
        assert row["topic"] == TOPICS[number % 3]
        assert (row["llm_why"], row["llm_cheap_label"]) == ("older", None)
        if number in sampled:
            assert (row["llm_reuse"], row["llm_level"]) == (None, "oracle")
            assert row["llm_sample_probability"] == pytest.approx(60 / 300)
            assert row["llm_prompt_version"] == after.prompt_version
        else:
            assert (row["llm_reuse"], row["llm_level"], row["llm_sample_probability"]) == ("older", "older", None)
            kept = {name: value for name, value in row.items() if name not in own}
            assert kept == {name: older[number][name] for name in kept}


def test_the_oracle_answers_all_rows_if_too_many_sampled_labels_change(tmp_path: Any) -> None:
    with Emulator(answer=changing(0.6)) as emulator:
        workspace = reproducible(tmp_path, emulator)
        workspace.run(definition(FIRST), rows(1_000))
        status = workspace.run(definition(), rows(1_000))
        assert status.submission.outcomes == {"succeeded": 1_000}
        assert not sent_to(workspace, status, CHEAP)
        sent = sent_to(workspace, status, ORACLE)
        assert (len(sent), set(sent.values())) == (1_000, {1})
        for number, row in labels(workspace, definition(), status).items():
            assert row["topic"] == TOPICS[(number + (number < 600)) % 3]
            assert (row["llm_reuse"], row["llm_level"], row["llm_sample_probability"]) == (None, "oracle", 1.0)
        assert f"{ORACLE} answers all" in decision(workspace, status).result_text
        assert status.submission.cost_usd == sum(
            row["llm_cost_usd"] for row in labels(workspace, definition(), status).values()
        )


def test_the_cascade_labels_new_and_changed_rows_beside_the_older_labels(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    changed = pl.concat([rows(280), rows(20, 280, " again"), rows(100, 300)])
    status = workspace.run(definition(), changed)
    assert status.submission.outcomes == {"succeeded": 400}
    known = decision(workspace, status)
    assert (known.rows, known.passes) == (280, True)
    cheap, oracle = (sent_to(workspace, status, model) for model in (CHEAP, ORACLE))
    assert cheap.keys() == {*range(280, 400)}
    assert sum(number < 280 for number in oracle) == 60
    assert set((cheap + oracle).values()) <= {1, 2}
    levels = levels_of(workspace.engine().payloads, status.submission)
    assert levels is not None
    assert (levels.rows, levels.sample) == (120, 60)
    found = labels(workspace, definition(), status)
    assert {row["topic"] == TOPICS[number % 3] for number, row in found.items()} == {True}
    whys = Counter(row["llm_why"] for row in found.values())
    assert whys["older"] == 280
    assert whys["sampled"] == 60
    # The cascade's sample is drawn from the rows without an older label alone.
    [chance] = {row["llm_sample_probability"] for row in found.values() if row["llm_why"] == "accepted"}
    assert chance == pytest.approx(60 / 120)


def test_labels_of_one_model_stay_when_it_becomes_a_cascade(workspace: Workspace) -> None:
    plain = labeling(model=ORACLE, prompt=FIRST, resend=Resend(), params={"max_tokens": 50})
    first = workspace.run(plain, rows(300))
    older = labels(workspace, plain, first)
    status = workspace.run(definition(), rows(300))
    assert not sent_to(workspace, status, CHEAP)
    assert len(sent_to(workspace, status, ORACLE)) == 60
    found = labels(workspace, definition(), status)
    kept = {number: row["llm_request_id"] for number, row in found.items() if row["llm_reuse"] == "older"}
    assert kept == {number: older[number]["llm_request_id"] for number in kept}
    assert len(kept) == 240


def test_labels_stay_when_the_probability_of_a_label_becomes_the_score(workspace: Workspace) -> None:
    plain = labeling(model=CHEAP, prompt=FIRST, resend=Resend(), params={"max_tokens": 50})
    workspace.run(plain, rows(300))
    after = definition(cascade={"score": "llm_logprob"})
    status = workspace.run(after, rows(300))
    found = labels(workspace, after, status)
    kept = sum(row["llm_reuse"] == "older" for row in found.values())
    assert kept == 225 - 60, "the model gave no valid reply for 75 rows"
    assert {row["llm_logprob"] for row in found.values() if row["llm_reuse"]} == {None}


def test_labels_of_a_cascade_stay_when_one_model_takes_over(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    relabel = Resend(reuse=Reuse(relabel=Relabel(**RELABEL)))
    plain = labeling(model=ORACLE, prompt=SECOND, resend=relabel, params={"max_tokens": 50})
    status = workspace.run(plain, rows(300))
    assert len(sent_to(workspace, status, ORACLE)) == 60
    models = {row["llm_model"] for row in labels(workspace, plain, status).values()}
    assert len(models) == 2, "labels of both models stay"


def test_shared_labels_of_near_copies_stay_as_older_labels(tmp_path: Any) -> None:
    near = Resend(reuse=Reuse(near=Near("body", "topic", error=0.1, sample=60)))
    before = definition(Prompt(user="{{ body }}"), resend=near)
    with Emulator(answer=by_group) as emulator:
        workspace = reproducible(tmp_path, emulator)
        first = workspace.run(before, copies(120, 3))
        older = topics(workspace, before, first.submission)
        assert sum(row["llm_reuse"] == "near" for row in older.values()) == 180
        status = workspace.run(definition(), copies(120, 3))
        assert status.submission.outcomes == {"succeeded": 360}
        assert decision(workspace, status).rows == 360
        engine = workspace.engine()
        sent = [
            shard
            for shard in engine.ledger.shards.of_submission(status.submission.submission_id)
            if shard.batch.sent_at is not None
        ]
        assert [(shard.asked_of, shard.requests) for shard in sent] == [(ORACLE, 60)]
        found = topics(workspace, definition(), status.submission)
        assert {place: row["topic"] for place, row in found.items()} == {p: row["topic"] for p, row in older.items()}
        total = sum(row["llm_cost_usd"] for row in found.values() if row["llm_reuse"] is None)
        assert total == status.submission.cost_usd


def test_a_third_prompt_is_another_look_and_compares_with_the_labels_as_they_are(workspace: Workspace) -> None:
    versions = [definition(prompt).prompt_version for prompt in (FIRST, SECOND, THIRD)]
    workspace.run(definition(FIRST), rows(400))
    second = workspace.run(definition(), rows(400))
    third = workspace.run(definition(THIRD), rows(400))
    assert decision(workspace, second).look == 1
    known = decision(workspace, third)
    assert (known.look, known.rows, known.wrong, known.passes) == (2, 400, 0, True)
    assert known.older == second.submission.submission_id
    counts = Counter(row["llm_prompt_version"] for row in labels(workspace, definition(THIRD), third).values())
    assert counts.keys() == {*versions}
    assert counts[versions[2]] == len(sent_to(workspace, third, ORACLE)) == 60


def test_rows_of_a_later_day_are_labeled_and_the_others_keep_their_decision(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    first = workspace.run(definition(), rows(300))
    more = workspace.run(definition(), rows(400))
    for model in (CHEAP, ORACLE):
        assert sent_to(workspace, more, model).keys() <= {*range(300, 400)}
    before, after = (labels(workspace, definition(), status) for status in (first, more))
    for number, row in before.items():
        assert (after[number]["llm_reuse"], after[number]["llm_why"]) == (row["llm_reuse"], "older")
        assert after[number]["llm_cost_usd"] == row["llm_cost_usd"]
        assert after[number]["llm_request_id"] == row["llm_request_id"]
    again = workspace.run(definition(), rows(300))
    assert not sent_to(workspace, again, CHEAP) + sent_to(workspace, again, ORACLE)
    same = workspace.run(definition(), rows(300).sample(fraction=1.0, shuffle=True, seed=1))
    assert same.submission.submission_id == again.submission.submission_id


def test_relabel_added_to_a_cascade_asks_nothing_and_adds_its_column(workspace: Workspace) -> None:
    without = definition(FIRST, {})
    first = workspace.run(without, rows(200))
    assert "llm_reuse" not in labels(workspace, without, first)[0]
    status = workspace.run(definition(FIRST), rows(200))
    assert status.submission.submission_id == first.submission.submission_id
    assert {row["llm_reuse"] for row in labels(workspace, definition(FIRST), status).values()} == {None}
    more = workspace.run(definition(FIRST), rows(220))
    assert sent_to(workspace, more, CHEAP).keys() == {*range(200, 220)}
    assert len(sent_to(workspace, workspace.run(definition(), rows(220)), ORACLE)) == 60


def test_a_cascade_without_older_labels_is_the_same_submission_again(workspace: Workspace) -> None:
    first = workspace.run(definition(FIRST), rows(200))
    again = workspace.run(definition(FIRST), rows(200).sample(fraction=1.0, shuffle=True, seed=1))
    assert again.submission.submission_id == first.submission.submission_id
    assert {row["llm_reuse"] for row in labels(workspace, definition(FIRST), first).values()} == {None}


def test_the_plan_states_the_joint_guarantee_and_the_limit_counts_the_held_rows(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    before = workspace.files()
    preview = workspace.engine().preview(definition(), rows(300), partition="")
    assert workspace.files() == before
    assert preview.shares is not None
    assert preview.shares.plan_text == (
        f"finds 300 rows with a label of submission {preview.shares.older}. {ORACLE} answers a sample of 60 of them, "  # type: ignore[attr-defined]
        "and the cascade labels all other rows. If at most 12 of these get another 'topic', 240 requests are saved at "
        f"both models, and their older labels stay; otherwise {ORACLE} answers them all"
    )
    assert preview.shares.promise_text == (
        f"With a confidence of 90%, at least 70% of the labels agree with {ORACLE} on 'topic'. The cascade guarantees "
        "80% for the rows without an older label, and an audit 70% for the others; the two risks add up."
    )
    assert preview.oracle is not None
    assert preview.oracle.requests == 60
    assert preview.held_usd == preview.oracle.reserved_usd
    assert preview.held_usd
    tight = definition(max_cost_usd=preview.held_usd)
    with pytest.raises(BudgetError):
        workspace.engine().plan(tight, rows(300), partition="")
    status = workspace.run(definition(), rows(300))
    assert (status.submission.cost_usd or 0) < preview.held_usd


def judge(workspace: Workspace, own: Labeling, status: Status, name: str) -> CheckOutcome:
    """Return the outcome of a check of the labels."""
    engine, stats = workspace.engine(), LabelStats(own)
    for part in engine.label_batches(own, status.submission.submission_id):
        stats.add(part)
    facts = PartitionFacts(
        stats=stats,
        rejects=stats.explain_rejects([]),
        status=engine.status(status.submission.submission_id),
        labeling=own,
        wanted=Checks(),
        levels=engine.deployment.levels(own, status.submission),
        shares=engine.deployment.shares(own, status.submission),
    )
    [check] = [check for check in CHECKS if check.name == name]
    return check.judge(check, facts)


@pytest.mark.parametrize("new_rows", [0, 100])
def test_the_check_states_the_joint_guarantee_and_what_the_sample_decided(workspace: Workspace, new_rows: int) -> None:
    workspace.run(definition(FIRST), rows(300))
    status = workspace.run(definition(), rows(300 + new_rows))
    judged = judge(workspace, definition(), status, "promise")
    assert judged.passed, judged.description
    assert "With a confidence of 90%, at least 70% of the labels agree" in judged.description
    assert "Older labels: 0 of 60 sampled labels change, 12 may." in judged.description
    # 90 of 300 rows, and what the cascade's sample of 60 allows of 100 other rows.
    assert judged.metadata["llm_batch/disagreement_bound"] == pytest.approx(0.3 if not new_rows else 0.27, abs=0.01)
    assert judge(workspace, definition(), status, "saves").passed


@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.parametrize("is_kept", [False, True])
def test_an_erased_row_leaves_no_older_answer_behind(workspace: Workspace, is_settled: bool, is_kept: bool) -> None:
    workspace.run(definition(FIRST), rows(300))
    engine = workspace.engine()
    submission = engine.plan(definition(), rows(300), partition="")
    known = relabels_of(engine.payloads, submission)
    assert known is not None
    if is_settled:
        workspace.finish(definition(), submission.submission_id)
    state = "held" if is_kept else "audited"
    pair = next(one for one in known.pairs.to_pylist() if one["state"] == state)
    manifest = engine.payloads.read_table(submission.manifest).to_pylist()
    key = next(row["ticket_id"] for row in manifest if row["llm_request_id"] == pair["llm_request_id"])
    engine.eraser.add_tombstones("ticket_labels", [key], None)
    assert engine.eraser.erase("ticket_labels") == []
    status = workspace.finish(definition(), submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 299}
    found = labels(workspace, definition(), status)
    assert int(key[1:]) not in found
    assert len(found) == 299
    for name in (OLDER, RELABELS):
        stored = engine.payloads.read_table(f"{submission.folder}/{name}")
        assert pair["leader"] not in stored["leader" if name == RELABELS else "llm_request_id"].to_pylist()
    again = workspace.run(definition(), rows(300))
    assert again.submission.submission_id == submission.submission_id


@pytest.mark.parametrize("name", [RELABELS, OLDER])
def test_without_the_stored_older_labels_no_label_is_made_and_nothing_is_paid_twice(
    workspace: Workspace, name: str
) -> None:
    workspace.run(definition(FIRST), rows(300))
    status = workspace.run(definition(), rows(300))
    workspace.engine().payloads.delete(f"{status.submission.folder}/{name}")
    with pytest.raises(PayloadError, match="older labels that it keeps"):
        labels(workspace, definition(), status)
    again = workspace.run(definition(), rows(300))
    assert again.submission.submission_id != status.submission.submission_id
    assert again.submission.outcomes == {"succeeded": 300}
    assert not sent_to(workspace, status, ORACLE).keys() & sent_to(workspace, again, ORACLE).keys()


def test_labels_of_a_cascade_whose_decisions_are_lost_cannot_stay(workspace: Workspace) -> None:
    first = workspace.run(definition(FIRST), rows(100))
    workspace.engine().payloads.delete(f"{first.submission.folder}/{CALIBRATION}")
    with pytest.raises(ConfigError, match="the file with the decisions of its cascade is lost"):
        workspace.engine().plan(definition(), rows(100), partition="")


@pytest.mark.parametrize("part_rows", [16, 64])
def test_labels_in_parts_are_those_of_the_whole(workspace: Workspace, part_rows: int) -> None:
    workspace.run(definition(FIRST), rows(300))
    bounds, workspace.bounds = workspace.bounds, {"part_rows": part_rows}
    status = workspace.run(definition(), pl.concat([rows(300), rows(80, 300)]))
    parts = [*workspace.engine().label_batches(definition(), status.submission.submission_id)]
    assert len(parts) > 1
    workspace.bounds = bounds
    whole = workspace.engine().labels(definition(), status.submission.submission_id).labels
    assert pa.concat_tables([part.labels for part in parts]).sort_by("ticket_id").equals(whole.sort_by("ticket_id"))
    again = workspace.engine().labels(definition(), status.submission.submission_id, reread=True).labels
    assert again.equals(whole)


def yes_or_no(body: Any, _url: str) -> Any:
    number = number_of(body)
    return {"topic": TOPICS[number % 2], "urgency": 1 + number % 5}


@pytest.mark.parametrize(
    ("guarantee", "is_kept"),
    [
        (Precision(0.5, yes="billing"), True),
        (Recall(0.5, yes="billing"), True),
        # The sample has too few yes for these.
        (Precision(0.999, yes="billing"), False),
        (Recall(0.999, yes="billing"), False),
    ],
)
def test_older_labels_of_a_filter_stay_only_if_the_sample_keeps_its_precision_or_recall(
    tmp_path: Any, guarantee: Precision | Recall, is_kept: bool
) -> None:
    schema = {
        "type": "object",
        "properties": {"topic": {"type": "string", "enum": ["billing", "bug"]}, "urgency": {"type": "integer"}},
        "required": ["topic", "urgency"],
    }
    cascade = Cascade(ORACLE, "topic", score="urgency", params={"max_tokens": 50}, guarantee=guarantee)
    usual = [definition(prompt, {"sample": 110, "share": 0.03}) for prompt in (FIRST, SECOND)]
    before, after = (replace(one, response=schema, cascade=cascade) for one in usual)
    with Emulator(answer=yes_or_no) as emulator:
        workspace = reproducible(tmp_path, emulator)
        workspace.run(before, rows(300))
        status = workspace.run(after, rows(300))
        assert status.submission.outcomes == {"succeeded": 300}
        known = decision(workspace, status)
        assert (known.errors, known.passes) == (0, is_kept)
        found = labels(workspace, after, status)
        assert any(row["llm_reuse"] == "older" for row in found.values()) is is_kept
        assert {row["topic"] == TOPICS[number % 2] for number, row in found.items()} == {True}
        assert ("too few yes for any" in known.result_text) is not is_kept


def test_rolling_thresholds_come_from_the_rows_without_an_older_label(workspace: Workspace) -> None:
    rolling = {"calibrate": Rolling(rows=60, audit=0.2)}
    days = [f"2026-01-0{day}" for day in (1, 2, 3)]
    for number, day in enumerate(days):
        workspace.run(definition(FIRST, cascade=rolling), rows(120, 1_000 * number), partition=day)
    for number, day in enumerate(days):
        grown = pl.concat([rows(120, 1_000 * number), rows(120, 1_000 * number + 500)])
        status = workspace.run(definition(cascade=rolling), grown, partition=day)
        assert status.submission.outcomes == {"succeeded": 240}
    levels = levels_of(workspace.engine().payloads, status.submission)
    assert levels is not None
    assert (levels.is_rolling, levels.rows) == (True, 120)


def test_guarantees_that_cannot_be_stated_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="name the same in both"):
        definition(relabel={"target": "urgency"})
    with pytest.raises(ConfigError, match="leave no confidence in both"):
        definition(relabel={"confidence": 0.4}, cascade={"confidence": 0.5})
    with pytest.raises(ConfigError, match="leaves nothing of the cascade's share"):
        definition(relabel={"share": 0.8})
