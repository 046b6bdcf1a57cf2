"""Older labels after a changed definition: which rows are asked, which labels stay, and what must never happen."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel
from workspace import TicketLabel, Workspace, assert_total, labeling

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.relabels import Relabels
from dagster_llm_batch.core.reuse import Near, Relabel, Reuse
from dagster_llm_batch.engine import Labeling, Realtime, Resend, Status
from dagster_llm_batch.errors import BudgetError, ConfigError, PayloadError
from dagster_llm_batch.files.shard_files import OLDER, RELABELS
from dagster_llm_batch.files.share_files import relabels_of
from dagster_llm_batch.testing.emulator import Emulator

TOPICS = ("billing", "bug", "how_to")
FIRST = Prompt(user="Label it: {{ body }}")
SECOND = Prompt(user="Label it with care: {{ body }}")
THIRD = Prompt(user="Label it at once: {{ body }}")


def rows(count: int, start: int = 0, change: str = "") -> pl.DataFrame:
    numbers = range(start, start + count)
    bodies = [f"Where is invoice number {n}{change}?" for n in numbers]
    return pl.DataFrame({"ticket_id": [f"t{n}" for n in numbers], "body": bodies})


def definition(prompt: Prompt = SECOND, **changes: Any) -> Labeling:
    relabel = Relabel("topic", share=0.1, sample=60)
    usual = {"prompt": prompt, "resend": Resend(reuse=Reuse(relabel=relabel))}
    return labeling(**{**usual, **changes})


def number_of(body: Any) -> int:
    return int(re.findall(r"invoice number (\d+)", str(body))[0])


def same(body: Any, _url: str) -> Any:
    """Answer every prompt alike."""
    number = number_of(body)
    return {"topic": TOPICS[number % 3], "urgency": 1 + number % 5}


def changing(share: float) -> Any:
    """Answer the first prompt as `same`, and the others otherwise for this share of the rows."""

    def answer(body: Any, url: str) -> Any:
        number = number_of(body)
        is_other = "Label it:" not in str(body) and number % 1_000 < 1_000 * share
        return {**same(body, url), "topic": TOPICS[(number + is_other) % 3]}

    return answer


@pytest.fixture
def workspace(tmp_path: Any) -> Any:
    with Emulator(answer=same) as emulator:
        yield Workspace(tmp_path, emulator)


def reproducible(tmp_path: Any, emulator: Emulator) -> Workspace:
    """Return a workspace whose samples do not depend on the port of the emulator."""
    workspace = Workspace(tmp_path, emulator)
    workspace.providers = {"openai": workspace.openai(account="tests")}
    return workspace


def asked(workspace: Workspace, status: Status) -> Counter[int]:
    """Count how often each row was sent in a submission."""
    engine, found = workspace.engine(), Counter[int]()
    for shard in engine.ledger.shards.of_submission(status.submission.submission_id):
        if shard.batch.sent_at is not None:
            found.update(number_of(json.loads(line)) for line in engine.payloads.lines(shard.path))
    return found


def decision(workspace: Workspace, status: Status) -> Relabels:
    found = relabels_of(workspace.engine().payloads, status.submission)
    assert found is not None
    return found


def labels(workspace: Workspace, asked_for: Labeling, status: Status) -> dict[int, Any]:
    found, _ = assert_total(workspace, asked_for, status.submission.submission_id, status.submission.rows)
    return {int(row["ticket_id"][1:]): row for row in found.to_pylist()}


def test_a_sample_is_asked_and_the_other_labels_stay_as_of_the_older_prompt(workspace: Workspace) -> None:
    before = definition(FIRST)
    first = workspace.run(before, rows(300))
    assert len(asked(workspace, first)) == 300
    older = labels(workspace, before, first)
    assert {row["llm_reuse"] for row in older.values()} == {None}
    status = workspace.run(definition(), rows(300))
    assert status.submission.outcomes == {"succeeded": 300}
    sent = asked(workspace, status)
    assert len(sent) == 60
    known = decision(workspace, status)
    assert (known.rows, known.sample, known.wrong, known.passes) == (300, 60, 0, True)
    found = labels(workspace, definition(), status)
    for number, row in found.items():
        assert row["topic"] == TOPICS[number % 3]
        if number in sent:
            assert row["llm_reuse"] is None
            assert row["llm_prompt_version"] == definition().prompt_version
        else:
            same_columns = [name for name in row if name not in ("llm_reuse", "llm_run_id")]
            assert row["llm_reuse"] == "older"
            assert [row[name] for name in same_columns] == [older[number][name] for name in same_columns]
    assert {*found[0]} == {*older[0]}


def test_all_rows_are_asked_if_too_many_sampled_labels_change(tmp_path: Any) -> None:
    with Emulator(answer=changing(0.5)) as emulator:
        workspace = reproducible(tmp_path, emulator)
        workspace.run(definition(FIRST), rows(1_000))
        status = workspace.run(definition(), rows(1_000))
        assert status.submission.outcomes == {"succeeded": 1_000}
        sent = asked(workspace, status)
        assert len(sent) == 1_000
        assert set(sent.values()) == {1}
        found = labels(workspace, definition(), status)
        assert {row["llm_reuse"] for row in found.values()} == {None}
        for number, row in found.items():
            assert row["topic"] == TOPICS[(number + (number < 500)) % 3]
        known = decision(workspace, status)
        fewest, most = known.interval or (0, 0)
        assert 200 < fewest <= 500 <= most < 800
        assert f"{fewest:,} to {most:,} would change" in known.result_text
        assert "100 may. All rows are asked" in known.result_text
        assert workspace.engine().ledger.money.spent_usd("test") == sum(
            one.cost_usd or 0 for one in workspace.engine().ledger.submissions.list_all("test")
        )


def test_few_changed_labels_are_allowed_and_the_interval_has_their_number(tmp_path: Any) -> None:
    with Emulator(answer=changing(0.03)) as emulator:
        workspace = reproducible(tmp_path, emulator)
        relabel = Relabel("topic", share=0.1, sample=200)
        after = definition(resend=Resend(reuse=Reuse(relabel=relabel)))
        workspace.run(definition(FIRST), rows(1_000))
        status = workspace.run(after, rows(1_000))
        assert len(asked(workspace, status)) == 200
        known = decision(workspace, status)
        fewest, most = known.interval or (0, 0)
        assert known.wrong
        assert 0 < fewest <= 30 <= most <= 100
        found = labels(workspace, after, status)
        wrong = sum(row["topic"] != TOPICS[(number + (number < 30)) % 3] for number, row in found.items())
        assert 0 < wrong <= 100


def test_new_and_changed_rows_and_those_without_an_older_answer_are_asked_at_once(tmp_path: Any) -> None:
    def answer(body: Any, url: str) -> Any:
        return "no JSON" if number_of(body) < 5 and "Label it:" in str(body) else same(body, url)

    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        workspace.run(definition(FIRST), rows(300))
        changed = pl.concat([rows(280), rows(10, 280, " again"), rows(10, 290), rows(20, 300)])
        status = workspace.run(definition(), changed)
        assert status.submission.outcomes == {"succeeded": 320}
        sent = asked(workspace, status)
        assert set(sent.values()) == {1}
        assert {*range(5), *range(280, 290), *range(300, 320)} <= sent.keys()
        assert len(sent) == 60 + 5 + 10 + 20
        assert decision(workspace, status).rows == 300 - 5 - 10


def test_another_model_keeps_labels_though_its_requests_are_the_same(workspace: Workspace) -> None:
    workspace.run(definition(), rows(300))
    other = definition(model="openai/gpt-4o-mini")
    status = workspace.run(other, rows(300))
    sent = asked(workspace, status)
    assert len(sent) == 60
    for number, row in labels(workspace, other, status).items():
        assert row["llm_model"].startswith("gpt-4o-mini") is (number in sent)
        assert (row["llm_reuse"] is None) is (number in sent)


def test_a_sampled_row_without_a_new_answer_is_wrong_and_a_reject(tmp_path: Any) -> None:
    def answer(body: Any, url: str) -> Any:
        return "no JSON" if "mini" in str(body.get("model")) and number_of(body) % 50 == 0 else same(body, url)

    with Emulator(answer=answer) as emulator:
        workspace = reproducible(tmp_path, emulator)
        relabel = Relabel("topic", share=0.2, sample=150)
        other = definition(model="openai/gpt-4o-mini", resend=Resend(reuse=Reuse(relabel=relabel)))
        workspace.run(definition(), rows(300))
        status = workspace.run(other, rows(300))
        sent = asked(workspace, status)
        failed = {number for number in sent if number % 50 == 0}
        known = decision(workspace, status)
        assert known.wrong == len(failed) > 0
        assert known.passes
        assert status.submission.outcomes == {"succeeded": 300 - len(failed), "invalid": len(failed)}
        labeled = workspace.engine().labels(other, status.submission.submission_id)
        assert {row["ticket_id"] for row in labeled.rejects.to_pylist()} == {f"t{number}" for number in failed}
        assert labeled.rejects.column_names[-1] != "llm_reuse"


def test_the_costs_of_labels_are_those_of_their_own_answers(workspace: Workspace) -> None:
    first = workspace.run(definition(FIRST), rows(300))
    older = labels(workspace, definition(FIRST), first)
    status = workspace.run(definition(), rows(300))
    found = labels(workspace, definition(), status)
    new = sum(row["llm_cost_usd"] for row in found.values() if row["llm_reuse"] is None)
    assert abs(new - (status.submission.cost_usd or 0)) < Decimal("1e-9")
    kept = {number: row["llm_cost_usd"] for number, row in found.items() if row["llm_reuse"] == "older"}
    assert kept == {number: older[number]["llm_cost_usd"] for number in kept}


def test_rows_of_a_later_day_are_asked_and_the_others_keep_their_decision(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    first = workspace.run(definition(), rows(300))
    more = workspace.run(definition(), rows(340).sample(fraction=1, shuffle=True, seed=1))
    assert asked(workspace, more).keys() == {*range(300, 340)}
    before, after = (labels(workspace, definition(), status) for status in (first, more))
    for number, row in before.items():
        assert after[number]["llm_reuse"] == row["llm_reuse"]
        assert after[number]["llm_request_id"] == row["llm_request_id"]
        assert after[number]["llm_prompt_version"] == row["llm_prompt_version"]
        assert after[number]["llm_cost_usd"] == row["llm_cost_usd"]
    assert decision(workspace, more).look == decision(workspace, first).look == 1
    again = workspace.run(definition(), rows(300))
    assert not asked(workspace, again)
    assert {n: row["llm_reuse"] for n, row in labels(workspace, definition(), again).items()} == {
        number: row["llm_reuse"] for number, row in before.items()
    }


def test_the_same_rows_with_the_same_definition_are_the_same_submission(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    first = workspace.run(definition(), rows(300))
    again = workspace.run(definition(), rows(300).sample(fraction=1.0, shuffle=True, seed=1))
    assert again.submission.submission_id == first.submission.submission_id


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
    assert counts[versions[2]] == len(asked(workspace, third)) == 60
    back = workspace.run(definition(FIRST), rows(400))
    assert not asked(workspace, back)
    assert {row["llm_reuse"] for row in labels(workspace, definition(FIRST), back).values()} == {None}


def test_relabel_added_to_a_definition_asks_nothing_and_adds_its_column(workspace: Workspace) -> None:
    without = definition(FIRST, resend=Resend())
    first = workspace.run(without, rows(100))
    assert "llm_reuse" not in labels(workspace, without, first)[0]
    status = workspace.run(definition(FIRST), rows(100))
    assert status.submission.submission_id == first.submission.submission_id
    assert {row["llm_reuse"] for row in labels(workspace, definition(FIRST), status).values()} == {None}
    assert len(asked(workspace, workspace.run(definition(), rows(100)))) < 100


def test_another_share_is_another_look_and_asks_no_row_again(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(400))
    first = workspace.run(definition(), rows(400))
    stricter = definition(resend=Resend(reuse=Reuse(relabel=Relabel("topic", share=0.05, sample=120))))
    status = workspace.run(stricter, rows(400))
    known = decision(workspace, status)
    assert (known.look, known.sample, known.wrong) == (2, 120, 0)
    both = asked(workspace, first) + asked(workspace, status)
    assert len(both) == 120
    assert set(both.values()) == {1}


def test_few_rows_are_all_asked_and_the_plan_says_so(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(20))
    small = definition(resend=Resend(reuse=Reuse(relabel=Relabel("topic"))))
    preview = workspace.engine().preview(small, rows(20))
    assert preview.shares is not None
    assert "all rows are asked" in preview.shares.plan_text
    assert preview.to_send == 20
    status = workspace.run(small, rows(20))
    assert len(asked(workspace, status)) == 20


def test_a_preview_shows_the_saving_and_leaves_no_file(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    before = workspace.files()
    preview = workspace.engine().preview(definition(), rows(300), partition="")
    assert (preview.to_send, preview.requests) == (60, 300)
    assert preview.shares is not None
    assert "finds 300 rows with a label" in preview.shares.plan_text
    assert "240 requests are saved" in preview.shares.plan_text
    whole = workspace.engine().preview(definition(resend=Resend()), rows(300), partition="")
    assert preview.bound_usd == whole.bound_usd
    assert workspace.files() == before


def test_limits_count_as_if_all_rows_were_asked_and_give_the_reserve_back(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    whole = workspace.engine().preview(definition(resend=Resend()), rows(300), partition="").estimated_usd
    assert whole is not None
    with pytest.raises(BudgetError):
        workspace.engine().plan(definition(max_cost_usd=whole * 9 / 10), rows(300), partition="")
    before = workspace.engine().ledger.money.spent_usd("test")
    after = definition(max_cost_usd=whole * 11 / 10)
    submission = workspace.engine().plan(after, rows(300), partition="")
    assert submission.reserved_usd
    assert workspace.engine().ledger.money.spent_usd("test") >= before + submission.reserved_usd
    status = workspace.finish(after, submission.submission_id)
    assert workspace.engine().ledger.money.spent_usd("test") == before + (status.submission.cost_usd or 0)


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
    again = workspace.run(definition(), rows(300), again=True)
    assert again.submission.outcomes == {"succeeded": 299}
    assert len(asked(workspace, again)) <= 1, "at most another row takes its place in the sample"


@pytest.mark.parametrize("lost", [RELABELS, OLDER])
def test_an_erased_row_leaves_nothing_behind_if_one_of_the_two_files_is_lost(workspace: Workspace, lost: str) -> None:
    workspace.run(definition(FIRST), rows(300))
    status = workspace.run(definition(), rows(300))
    pair = next(one for one in decision(workspace, status).pairs.to_pylist() if one["is_shared"])
    engine, folder = workspace.engine(), status.submission.folder
    manifest = engine.payloads.read_table(status.submission.manifest).to_pylist()
    key = next(row["ticket_id"] for row in manifest if row["llm_request_id"] == pair["llm_request_id"])
    engine.payloads.delete(f"{folder}/{lost}")
    engine.eraser.add_tombstones("ticket_labels", [key], None)
    assert engine.eraser.erase("ticket_labels") == []
    left = [path for name in (OLDER, RELABELS) for path in (workspace.tmp_path / "payloads").rglob(name)]
    assert not any(pair["leader"] in column.to_pylist() for path in left for column in pq.read_table(path).columns)
    again = workspace.run(definition(), rows(300))
    assert again.submission.outcomes == {"succeeded": 299}


def test_rows_that_share_a_request_are_drawn_and_kept_together(workspace: Workspace) -> None:
    twice = pl.concat(
        [rows(200), rows(200).with_columns(pl.concat_str([pl.lit("again-"), "ticket_id"]).alias("ticket_id"))]
    )
    workspace.run(definition(FIRST), twice)
    status = workspace.run(definition(), twice)
    known = decision(workspace, status)
    assert known.rows == 400
    assert sum(known.pairs["drawn"].to_pylist()) == known.sample == 60
    found = workspace.engine().labels(definition(), status.submission.submission_id).labels.to_pylist()
    assert len(found) == 400
    by_request = Counter(row["llm_request_id"] for row in found)
    assert set(by_request.values()) == {2}
    total = sum(row["llm_cost_usd"] for row in found if row["llm_reuse"] is None)
    assert abs(total - (status.submission.cost_usd or 0)) < Decimal("1e-9")


def test_a_request_whose_rows_had_different_labels_is_asked(workspace: Workspace) -> None:
    pairs = pl.concat(
        [rows(200).with_columns(subject=pl.lit(name), ticket_id=pl.col("ticket_id") + name) for name in "ab"]
    )
    with_subject = Prompt(user="Label it: {{ subject }}: {{ body }}")
    workspace.run(definition(with_subject), pairs)
    status = workspace.run(definition(), pairs)
    assert len(asked(workspace, status)) == 200
    assert decision(workspace, status).rows == 0


def test_no_label_stays_for_a_request_that_another_row_makes_now(workspace: Workspace) -> None:
    whole = rows(200)
    turned = whole.with_columns(title=pl.concat([whole["body"][1:], whole["body"][:1]]))
    workspace.run(definition(Prompt(user="{{ body }}")), turned)
    other = definition(Prompt(user="{{ title }}"), model="openai/gpt-4o-mini")
    status = workspace.run(other, turned)
    assert decision(workspace, status).rows == 0
    assert len(asked(workspace, status)) == 200


@pytest.mark.parametrize("part_rows", [16, 64])
def test_labels_in_parts_are_those_of_the_whole(workspace: Workspace, part_rows: int) -> None:
    workspace.run(definition(FIRST), rows(300))
    status = workspace.run(definition(), rows(300))
    whole = workspace.engine().labels(definition(), status.submission.submission_id).labels
    workspace.bounds = {"part_rows": part_rows}
    parts = [*workspace.engine().label_batches(definition(), status.submission.submission_id)]
    assert len(parts) > 1
    assert pa.concat_tables([part.labels for part in parts]).sort_by("ticket_id").equals(whole.sort_by("ticket_id"))
    folders = [str(workspace.tmp_path / name) for name in ("labels", "rejects")]
    workspace.engine().write_labels(definition(), status.submission.submission_id, *folders)
    written = pq.read_table(folders[0]).sort_by("ticket_id")
    assert written.select(whole.column_names).equals(whole.sort_by("ticket_id"))
    again = workspace.engine().labels(definition(), status.submission.submission_id, reread=True).labels
    assert again.sort_by("ticket_id").equals(whole.sort_by("ticket_id"))


def test_labels_stay_after_the_older_submission_is_pruned(workspace: Workspace) -> None:
    first = workspace.run(definition(FIRST), rows(300))
    second = workspace.run(definition(), rows(300))
    before = labels(workspace, definition(), second)
    engine = workspace.engine()
    for path in workspace.files():
        if first.submission.submission_id in path:
            engine.payloads.delete(path)
    engine.ledger.submissions.mark_pruned(first.submission.submission_id, 1, 1)
    assert labels(workspace, definition(), second) == before
    more = workspace.run(definition(), rows(310))
    assert asked(workspace, more).keys() == {*range(300, 310)}


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
    assert not asked(workspace, status).keys() & asked(workspace, again).keys()


def test_more_rows_before_the_decision_take_over_the_sample(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    engine = workspace.engine()
    begun = engine.plan(definition(), rows(300), partition="")
    engine.submit(definition(), begun.submission_id)
    status = workspace.run(definition(), rows(320))
    assert status.submission.outcomes == {"succeeded": 320}
    assert asked(workspace, status).keys() == {*range(300, 320)}
    assert decision(workspace, status).passes


def test_a_decision_that_is_stored_is_not_made_again(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    status = workspace.run(definition(), rows(300))
    engine = workspace.engine()
    stored = engine.payloads.read_table(f"{status.submission.folder}/{RELABELS}")
    assert workspace.engine().advance(definition(), status.submission.submission_id).is_settled
    assert engine.payloads.read_table(f"{status.submission.folder}/{RELABELS}").equals(stored)
    assert pc.sum(stored["is_shared"].cast(pa.int64())).as_py() == 240


class Wider(TicketLabel):
    topic: Literal["billing", "bug", "how_to", "other"]  # type: ignore[assignment]


class Narrower(TicketLabel):
    topic: Literal["billing", "bug"]  # type: ignore[assignment]


class Unbounded(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    urgency: int


class Longer(TicketLabel):
    reason: str


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"response": Longer}, "its response is without reason"),
        ({"response": Narrower}, "its response is of other values"),
        ({"response": Unbounded}, "its response is of other values"),
        ({"key": "body", "prompt": Prompt(user="{{ ticket_id }}")}, "the key of its rows is 'ticket_id'"),
    ],
)
def test_labels_that_cannot_be_compared_are_refused_before_anything_is_sent(
    workspace: Workspace, changes: Any, words: str
) -> None:
    workspace.run(definition(FIRST), rows(100))
    with pytest.raises(ConfigError, match=words) as refused:
        workspace.engine().plan(definition(**changes), rows(100), partition="")
    assert "Nothing was sent. Leave relabel out" in str(refused.value)


def test_labels_stay_if_the_new_response_has_more_choices(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    wider = definition(response=Wider)
    status = workspace.run(wider, rows(300))
    assert len(asked(workspace, status)) == 60
    assert Counter(row["llm_reuse"] for row in labels(workspace, wider, status).values()) == {"older": 240, None: 60}


def test_an_older_prompt_with_a_column_that_is_gone_is_refused(workspace: Workspace) -> None:
    workspace.run(definition(Prompt(user="{{ body }} {{ subject }}")), rows(100).with_columns(subject=pl.lit("x")))
    with pytest.raises(ConfigError, match="reads subject, and the rows do not have that any more"):
        workspace.engine().plan(definition(), rows(100), partition="")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"realtime": Realtime(deadline=timedelta(hours=6))}, "realtime .the other rows wait"),
        ({"resend": Resend(fallback=["openai/gpt-5"], reuse=Reuse(relabel=Relabel("topic")))}, "resend.fallback"),
        ({"resend": Resend(reuse=Reuse(relabel=Relabel("none")))}, "which the response does not have"),
    ],
)
def test_what_is_not_possible_yet_is_refused_where_it_is_declared(changes: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        definition(**changes)


def test_near_copies_and_older_labels_are_refused_together() -> None:
    with pytest.raises(ConfigError, match="each audit guarantees one of these alone"):
        Reuse(near=Near("body", "topic"), relabel=Relabel("topic"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"share": 0}, "above 0 and below 1"), ({"confidence": 1.0}, "above 0"), ({"sample": 5}, "is too small")],
)
def test_a_bad_setting_is_refused(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Relabel(**{"target": "topic", **settings})


@pytest.mark.parametrize("later", [{"prompt": THIRD}, {"resend": Resend()}, {"keep": ["body"]}])
def test_a_definition_that_changes_before_the_decision_keeps_the_labels_of_the_one_that_was_sent(
    workspace: Workspace, later: Any
) -> None:
    workspace.run(definition(FIRST), rows(300))
    engine, present = workspace.engine(), definition(**later)
    submission = engine.plan(definition(), rows(300), partition="")
    engine.submit(definition(), submission.submission_id)
    status = workspace.finish(present, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 300}
    found = labels(workspace, present, status)
    assert Counter(row["llm_reuse"] for row in found.values()) == {"older": 240, None: 60}


def test_rows_of_the_second_round_wait_for_a_person_if_the_definition_has_changed(tmp_path: Any) -> None:
    with Emulator(answer=changing(1)) as emulator:
        workspace = Workspace(tmp_path, emulator)
        workspace.run(definition(FIRST), rows(300))
        engine = workspace.engine()
        submission = engine.plan(definition(), rows(300), partition="")
        engine.submit(definition(), submission.submission_id)
        status = workspace.finish(definition(THIRD), submission.submission_id)
        assert status.submission.outcomes == {"succeeded": 60, "missing": 240}
        again = workspace.run(definition(), rows(300), again=True)
        assert again.submission.outcomes == {"succeeded": 300}
        assert not asked(workspace, status).keys() & asked(workspace, again).keys()


def test_files_of_a_submission_with_older_labels_are_pruned_as_a_whole(workspace: Workspace) -> None:
    workspace.run(definition(FIRST), rows(300))
    second = workspace.run(definition(), rows(300))
    third = workspace.run(definition(THIRD), rows(300))
    before = labels(workspace, definition(THIRD), third)
    engine = workspace.engine()
    for submission in engine.ledger.submissions.list_all("test"):
        engine.ledger.submissions.mark_delivered(submission.submission_id)
    workspace.skipped += timedelta(days=60)
    workspace.engine().prune(timedelta(days=30), delete=True)
    left = workspace.files()
    assert not [path for path in left if second.submission.submission_id in path]
    assert {f"{third.submission.folder}/{name}" for name in (OLDER, RELABELS)} <= left
    assert labels(workspace, definition(THIRD), third) == before
