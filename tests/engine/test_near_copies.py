"""Near copies over the emulator: which rows are asked, which share an answer, and the cases that must never happen."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_erased_rows import stored
from workspace import Workspace, labeling

from dagster_llm_batch.core.masks import Mask
from dagster_llm_batch.core.near_copies import EarlierGroups, NearCopies
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.quoted_columns import Evidence
from dagster_llm_batch.core.reuse import Near, Reuse
from dagster_llm_batch.core.shares import Shares
from dagster_llm_batch.engine import Labeling, Realtime, Resend, Status
from dagster_llm_batch.engine.realtime_sample import in_real_time
from dagster_llm_batch.errors import BudgetError, ConfigError, InputError, PayloadError
from dagster_llm_batch.files.shard_files import SHARES
from dagster_llm_batch.files.share_files import shares_of
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.testing.emulator import Emulator

TOPICS = ("billing", "bug", "how_to")
WORDS = [
    *("invoice", "delivery", "refund", "password", "account", "update", "screen", "error", "printer", "cable"),
    *("network", "charge", "month", "balance", "ticket", "order", "window", "keyboard", "battery", "signal"),
    *("payment", "address", "warranty", "receipt", "folder", "backup", "server", "router", "camera", "headset"),
]


def text(number: int, copy: int = 0) -> str:
    """Return a text of its own for each number; copies of one number differ in their last word."""
    chosen = random.Random(number).choices(WORDS, k=18)
    return f"Text number {number} of many: {' '.join(chosen)} {number * 7919} copy {copy}"


def rows(groups: int, copies: int, start: int = 0) -> pl.DataFrame:
    """Return groups of near copies."""
    pairs = [(group, copy) for group in range(start, start + groups) for copy in range(copies)]
    return pl.DataFrame(
        {"ticket_id": [f"g{g}c{c}" for g, c in pairs], "subject": "One", "body": [text(g, c) for g, c in pairs]}
    )


def definition(near: Near | None = None, **changes: Any) -> Labeling:
    usual = {"text": "body", "target": "topic", "error": 0.1, "sample": 60}
    prompt = Prompt(user="{{ subject }}: {{ body }}")
    return labeling(**{"prompt": prompt, "resend": Resend(reuse=Reuse(near=near or Near(**usual))), **changes})


def place_of(body: Any) -> tuple[int, int]:
    [found] = set(re.findall(r"Text number (\d+) .* copy (\d+)", str(body)))
    return int(found[0]), int(found[1])


def by_group(body: Any, _url: str) -> Any:
    """Answer all copies alike."""
    group, _ = place_of(body)
    return {"topic": TOPICS[group % 3], "urgency": 1 + group % 5}


def by_copy(body: Any, _url: str) -> Any:
    """Answer copies in different ways."""
    group, copy = place_of(body)
    return {"topic": TOPICS[(group + copy) % 3], "urgency": 1 + copy % 5}


@pytest.fixture
def workspace(tmp_path: Any) -> Any:
    with Emulator(answer=by_group) as emulator:
        yield Workspace(tmp_path, emulator)


def asked(workspace: Workspace) -> Counter[tuple[int, int]]:
    """Count how often each row was sent."""
    engine, found = workspace.engine(), Counter[tuple[int, int]]()
    for submission in engine.ledger.submissions.list_all("test"):
        for shard in engine.ledger.shards.of_submission(submission.submission_id):
            if shard.batch.sent_at is not None:
                found.update(place_of(json.loads(line)) for line in engine.payloads.lines(shard.path))
    return found


def test_near_copies_share_the_answers_of_their_leaders_if_the_audit_allows_it(workspace: Workspace) -> None:
    status = workspace.run(definition(), rows(40, 5))
    assert status.submission.outcomes == {"succeeded": 200}
    engine = workspace.engine()
    shares = shares_of(engine.payloads, status.submission)
    assert shares is not None
    assert (shares.rows, shares.sample, shares.wrong) == (160, 60, 0)
    sent = asked(workspace)
    assert len(sent) == 40 + 60
    assert set(sent.values()) == {1}
    labeled = engine.labels(definition(), status.submission.submission_id)
    assert labeled.labels.num_rows == 200
    found = {row["ticket_id"]: row for row in labeled.labels.to_pylist()}
    for key, row in found.items():
        group, copy = map(int, key[1:].split("c"))
        assert row["topic"] == TOPICS[group % 3]
        assert (row["llm_reuse"] == "near") is ((group, copy) not in sent)
    assert len({row["llm_request_id"] for row in found.values()}) == 100


def test_all_copies_are_asked_if_too_many_audited_ones_differ_from_their_leaders(tmp_path: Any) -> None:
    with Emulator(answer=by_copy) as emulator:
        workspace = Workspace(tmp_path, emulator)
        status = workspace.run(definition(), rows(40, 5))
        assert status.submission.outcomes == {"succeeded": 200}
        sent = asked(workspace)
        assert len(sent) == 200
        assert set(sent.values()) == {1}
        engine = workspace.engine()
        labels = engine.labels(definition(), status.submission.submission_id).labels
        assert labels["llm_reuse"].null_count == 200
        for row in labels.to_pylist():
            group, copy = map(int, row["ticket_id"][1:].split("c"))
            assert row["topic"] == TOPICS[(group + copy) % 3]
        shares = shares_of(engine.payloads, status.submission)
        assert shares is not None
        assert "all copies are asked" in shares.result_text


def test_a_copy_is_asked_if_its_leader_has_no_answer(tmp_path: Any) -> None:
    first: set[tuple[int, int]] = set()

    def answer(body: Any, url: str) -> Any:
        # Of each tenth group, no row of the first round gets a good answer.
        place = place_of(body)
        if len(first) < 100:
            first.add(place)
        return "no JSON" if place[0] % 10 == 0 and place in first else by_group(body, url)

    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        near = Near(text="body", target="topic", error=0.3, sample=60)
        status = workspace.run(definition(near), rows(40, 5))
        assert sum(status.submission.outcomes.values()) == 200
        labeled = workspace.engine().labels(definition(near), status.submission.submission_id)
        assert labeled.labels.num_rows + labeled.rejects.num_rows == 200
        rejected = {row["ticket_id"] for row in labeled.rejects.to_pylist()}
        assert rejected == {f"g{group}c{copy}" for group, copy in first if group % 10 == 0}
        shared = {row["ticket_id"] for row in labeled.labels.to_pylist() if row["llm_reuse"] == "near"}
        assert shared
        assert not any(int(key[1:].split("c")[0]) % 10 == 0 for key in shared), "their leaders have no answer"


def test_the_cost_of_a_shared_answer_is_divided_among_its_rows(workspace: Workspace) -> None:
    status = workspace.run(definition(), rows(40, 5))
    labels = workspace.engine().labels(definition(), status.submission.submission_id).labels
    total = sum(row["llm_cost_usd"] for row in labels.to_pylist())
    assert abs(total - status.submission.cost_usd) < Decimal("1e-9")


def test_rows_of_a_later_day_join_the_leaders_and_no_row_is_asked_twice(workspace: Workspace) -> None:
    workspace.run(definition(), rows(40, 4))
    first = asked(workspace)
    status = workspace.run(definition(), rows(40, 5))
    assert status.submission.outcomes == {"succeeded": 200}
    both = asked(workspace)
    assert set(both.values()) == {1}
    assert len(both) < 200
    assert first.keys() <= both.keys()


def test_the_same_rows_in_another_order_are_the_same_submission(workspace: Workspace) -> None:
    first = workspace.run(definition(), rows(40, 5))
    again = workspace.run(definition(), rows(40, 5).sample(fraction=1.0, shuffle=True, seed=1))
    assert again.submission.submission_id == first.submission.submission_id


def test_few_copies_are_all_asked_and_the_plan_says_so(workspace: Workspace) -> None:
    near = Near(text="body", target="topic", error=0.02)
    preview = workspace.engine().preview(definition(near), rows(3, 3))
    assert preview.shares is not None
    assert "too few for an audit to save a request" in preview.shares.plan_text
    assert preview.to_send == 9


def test_the_plan_shows_the_saving_and_asks_nothing(workspace: Workspace) -> None:
    preview = workspace.engine().preview(definition(), rows(40, 5))
    assert preview.shares is not None
    assert preview.to_send == 100
    assert "100 requests are saved" in preview.shares.plan_text
    assert preview.held_usd is not None
    assert not asked(workspace)


def test_copies_of_an_erased_leader_lose_its_answer(workspace: Workspace) -> None:
    engine = workspace.engine()
    status = workspace.run(definition(), rows(40, 5))
    labels = engine.labels(definition(), status.submission.submission_id).labels.to_pylist()
    shared = next(row for row in labels if row["llm_reuse"] == "near")
    [leader] = [
        row["ticket_id"]
        for row in labels
        if row["llm_request_id"] == shared["llm_request_id"] and row["llm_reuse"] is None
    ]
    engine.eraser.add_tombstones(status.submission.asset, [leader], None)
    assert engine.eraser.erase(status.submission.asset) == []
    after = engine.labels(definition(), status.submission.submission_id)
    keys = {row["ticket_id"] for row in after.labels.to_pylist()}
    assert leader not in keys
    assert shared["ticket_id"] not in keys
    assert shared["ticket_id"] in {row["ticket_id"] for row in after.rejects.to_pylist()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"realtime": Realtime(urgent="now")}, "does not go with realtime"),
        ({"prompt": Prompt(user="{{ body }}", images=["photo"])}, "does not go with Prompt.images or Prompt.documents"),
        ({"prompt": Prompt(user="{{ row }}")}, "names its columns"),
        ({"prompt": Prompt(user="{{ subject }}")}, "which the prompt does not read"),
    ],
)
def test_what_is_not_possible_yet_is_refused_where_it_is_declared(changes: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        definition(**changes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "none"}, "which the response does not have"),
        ({"similarity": 0.2}, "it is 0.5 to 1"),
        ({"vectors": "vector"}, "a cosine from 0.9 to 1"),
        ({"error": 0}, "above 0 and below 1"),
        ({"sample": 5}, "is too small"),
    ],
)
def test_a_bad_setting_is_refused(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        definition(Near(**{"text": "body", "target": "topic", **settings}))


def with_vectors(frame: pl.DataFrame) -> pl.DataFrame:
    """Add a vector to each row, which is alike for all rows of a group of six, whatever their texts are."""
    groups = [int(key[1:].split("c")[0]) // 6 for key in frame["ticket_id"]]
    vectors = [np.random.default_rng(group).standard_normal(32) for group in groups]
    return frame.with_columns(vector=pl.Series([(one + at / 1e4).tolist() for at, one in enumerate(vectors)]))


def by_six(body: Any, _url: str) -> Any:
    group, _ = place_of(body)
    return {"topic": TOPICS[group // 6 % 3], "urgency": 1}


def test_rows_with_near_vectors_share_answers_whatever_their_texts_are(tmp_path: Any) -> None:
    near = Near("body", "topic", similarity=0.95, error=0.1, sample=60, vectors="vector")
    with Emulator(answer=by_six) as emulator:
        workspace, given = Workspace(tmp_path, emulator), with_vectors(rows(240, 2))
        status = workspace.run(definition(near), given)
        assert status.submission.outcomes == {"succeeded": 480}
        shares = shares_of(workspace.engine().payloads, status.submission)
        assert shares is not None
        assert (shares.rows, shares.sample, shares.passes) == (440, 60, True)
        assert len(asked(workspace)) == 40 + 60
        found = labels(workspace, status, definition(near))
        assert {place: row["topic"] for place, row in found.items()} == {
            (group, copy): TOPICS[group // 6 % 3] for group in range(240) for copy in range(2)
        }
        # The vectors are part of no request.
        engine = workspace.engine()
        [shard, *_] = engine.ledger.shards.of_submission(status.submission.submission_id)
        assert all(b"vector" not in line for line in engine.payloads.lines(shard.path))


def test_vectors_of_large_whole_numbers_are_compared(workspace: Workspace) -> None:
    near = Near("body", "topic", similarity=0.95, error=0.1, sample=60, vectors="vector")
    given = with_vectors(rows(240, 2)).with_columns(vector=(pl.col("vector") * 2**40).cast(pl.List(pl.Int64)))
    shares = workspace.engine().preview(definition(near), given).shares
    assert shares is not None
    assert (shares.rows, shares.sample) == (440, 60)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (rows(2, 2), "which the rows lack. Columns of the rows: ticket_id, subject, body"),
        (rows(2, 2).with_columns(vector=pl.lit("1,2")), "It takes a list of numbers"),
    ],
)
def test_rows_without_usable_vectors_are_refused_before_anything_is_sent(
    workspace: Workspace, frame: pl.DataFrame, words: str
) -> None:
    near = Near("body", "topic", similarity=0.95, error=0.1, sample=60, vectors="vector")
    with pytest.raises(InputError, match=words):
        workspace.engine().plan(definition(near), frame, partition="")
    assert not asked(workspace)


def test_groups_are_the_same_in_any_order_and_stay_as_more_texts_come() -> None:
    def groups(texts: list[tuple[int, int]], earlier: EarlierGroups | None = None) -> dict[str, str]:
        copies = NearCopies(0.8, "characters", BytesIO)
        ids = [hashlib.blake2b(text(*one).encode(), digest_size=20).hexdigest() for one in texts]
        copies.add(ids, [text(*one) for one in texts], [b""] * len(texts))
        found = {one.request_id: one.leader for one in copies.groups(earlier)}
        copies.close()
        return found

    places = [(group, copy) for group in range(30) for copy in range(4)]
    shuffled = random.Random(1).sample(places, len(places))
    found = groups(places)
    assert found == groups(shuffled)
    assert len(found) == 90
    ids = {hashlib.blake2b(text(*one).encode(), digest_size=20).hexdigest() for one in places}
    earlier = EarlierGroups(frozenset(ids - found.keys()), {one: (leader, 0.9) for one, leader in found.items()})
    more = groups([*places, *((group, 4) for group in range(30))], earlier)
    assert {one: leader for one, leader in more.items() if one in ids} == found
    assert len(more) == 120


def shares(workspace: Workspace, submission: Submission) -> Shares:
    found = shares_of(workspace.engine().payloads, submission)
    assert found is not None
    return found


def labels(workspace: Workspace, status: Status, asked_for: Labeling | None = None) -> dict[tuple[int, int], Any]:
    labeled = workspace.engine().labels(asked_for or definition(), status.submission.submission_id)
    return {number_of(row["ticket_id"]): row for row in [*labeled.labels.to_pylist(), *labeled.rejects.to_pylist()]}


def number_of(key: str) -> tuple[int, int]:
    group, copy = key[1:].split("c")
    return int(group), int(copy)


@pytest.mark.parametrize("part_rows", [16, 64])
def test_labels_in_parts_are_those_of_the_whole(workspace: Workspace, part_rows: int) -> None:
    status = workspace.run(definition(), rows(40, 5))
    whole = workspace.engine().labels(definition(), status.submission.submission_id).labels
    workspace.bounds = {"part_rows": part_rows}
    parts = [*workspace.engine().label_batches(definition(), status.submission.submission_id)]
    assert len(parts) > 1
    assert pa.concat_tables([part.labels for part in parts]).sort_by("ticket_id").equals(whole.sort_by("ticket_id"))
    folders = [str(workspace.tmp_path / name) for name in ("labels", "rejects")]
    workspace.engine().write_labels(definition(), status.submission.submission_id, *folders)
    written = pq.read_table(folders[0]).sort_by("ticket_id")
    assert written.select(whole.column_names).equals(whole.sort_by("ticket_id"))


def test_rows_of_the_next_day_join_the_leaders_and_no_request_is_paid_twice(workspace: Workspace) -> None:
    first = workspace.run(definition(), rows(40, 5))
    before = labels(workspace, first)
    both = pl.concat([rows(40, 7), rows(4, 1, start=90)])
    second = workspace.run(definition(), both.sample(fraction=1, shuffle=True, seed=1))
    assert second.submission.outcomes == {"succeeded": 284}
    sent = asked(workspace)
    assert set(sent.values()) == {1}
    after = labels(workspace, second)
    kept = [place for place in before if place not in sent]
    assert kept
    assert all(after[place]["llm_request_id"] == before[place]["llm_request_id"] for place in kept)
    new = {place for place in after if place[1] >= 5}
    assert len([place for place in new if place not in sent]) > 40
    for (group, _), row in after.items():
        assert row["topic"] == TOPICS[group % 3]


def test_earlier_rows_that_come_back_have_their_decision_and_cost_nothing(workspace: Workspace) -> None:
    first = workspace.run(definition(), rows(40, 5))
    workspace.run(definition(), rows(40, 6))
    sent = asked(workspace)
    third = workspace.run(definition(), rows(40, 5))
    assert third.submission.submission_id != first.submission.submission_id
    assert third.submission.outcomes == {"succeeded": 200}
    assert asked(workspace) == sent
    one, other = (labels(workspace, status) for status in (first, third))
    assert {place: row["topic"] for place, row in one.items()} == {place: row["topic"] for place, row in other.items()}


def test_a_preview_has_the_bound_of_all_requests_and_leaves_no_file(workspace: Workspace) -> None:
    preview = workspace.engine().preview(definition(), rows(40, 5), partition="")
    assert (preview.to_send, preview.requests) == (100, 200)
    assert preview.shares is not None
    assert "100 requests are saved" in preview.shares.plan_text
    assert preview.held_usd is not None
    assert preview.estimated_usd is not None
    assert float(preview.held_usd) == pytest.approx(float(preview.estimated_usd), rel=0.1)
    whole = workspace.engine().preview(definition(resend=Resend()), rows(40, 5), partition="")
    assert preview.bound_usd == whole.bound_usd
    assert not workspace.files()


def test_limits_count_as_if_all_copies_were_asked(workspace: Workspace) -> None:
    whole = workspace.engine().preview(definition(resend=Resend()), rows(40, 5), partition="").estimated_usd
    assert whole is not None
    with pytest.raises(BudgetError):
        workspace.engine().plan(definition(max_cost_usd=whole * 9 / 10), rows(40, 5), partition="")
    status = workspace.run(definition(max_cost_usd=whole * 11 / 10), rows(40, 5))
    assert status.submission.outcomes == {"succeeded": 200}


def test_another_guarantee_is_another_look_that_reuses_all_answers(workspace: Workspace) -> None:
    workspace.run(definition(), rows(40, 5))
    stricter = definition(Near("body", "topic", error=0.05, sample=100))
    status = workspace.run(stricter, rows(40, 5))
    known = shares(workspace, status.submission)
    assert (known.look, known.sample, known.wrong) == (2, 100, 0)
    assert set(asked(workspace).values()) == {1}
    assert len(asked(workspace)) == 40 + 100


@pytest.mark.parametrize("is_settled", [False, True])
def test_if_a_leader_is_erased_its_copies_are_asked_or_lose_its_answer(workspace: Workspace, is_settled: bool) -> None:
    asked_for = definition()
    engine = workspace.engine()
    submission = engine.plan(asked_for, rows(40, 5), partition="")
    if is_settled:
        workspace.finish(asked_for, submission.submission_id)
    known = shares(workspace, submission)
    held = Counter(one["leader"] for one in known.pairs.to_pylist() if one["state"] == "held")
    leader, copies = held.most_common(1)[0]
    manifest = engine.payloads.read_table(submission.manifest).to_pylist()
    key = next(row["ticket_id"] for row in manifest if row["llm_request_id"] == leader)
    # As a list of ids has it, and in tables and requests.
    traces = bytes.fromhex(leader), leader.encode(), text(*number_of(key)).encode()
    assert all(trace in stored(workspace) for trace in traces)
    engine.eraser.add_tombstones("ticket_labels", [key], None)
    assert engine.eraser.erase("ticket_labels") == []
    assert not [trace for trace in traces if trace in stored(workspace)]
    status = workspace.finish(asked_for, submission.submission_id)
    assert status.submission.requests == 199
    outcomes = {"succeeded": 199 - copies, "missing": copies} if is_settled else {"succeeded": 199}
    assert status.submission.outcomes == outcomes
    found = labels(workspace, status, asked_for)
    assert number_of(key) not in found
    assert Counter(row["llm_outcome"] for row in found.values()) == outcomes
    assert not [trace for trace in traces if trace in stored(workspace)]
    if is_settled:
        # They are grouped and asked anew on request.
        again = workspace.run(asked_for, rows(40, 5), again=True)
        assert again.submission.outcomes == {"succeeded": 199}
        assert set(asked(workspace).values()) == {1}


def test_without_the_stored_decision_no_label_is_made_and_nothing_is_paid_again(
    workspace: Workspace,
) -> None:
    status = workspace.run(definition(), rows(40, 5))
    sent = asked(workspace)
    workspace.engine().payloads.delete(f"{status.submission.folder}/{SHARES}")
    with pytest.raises(PayloadError, match="near copies of submission"):
        labels(workspace, status)
    again = workspace.run(definition(), rows(40, 5))
    assert again.submission.submission_id != status.submission.submission_id
    assert again.submission.outcomes == {"succeeded": 200}
    assert asked(workspace) == sent


def test_a_changed_similarity_reads_older_labels_by_its_own_definition(workspace: Workspace) -> None:
    status = workspace.run(definition(), rows(40, 5))
    found = labels(workspace, status, definition(Near("body", "topic", similarity=0.9)))
    assert sum(row["llm_reuse"] == "near" for row in found.values()) == 100


def test_an_answer_in_real_time_of_the_same_labeling_has_no_near_copies() -> None:
    assert in_real_time(definition(), "other").near is None


def test_another_prompt_is_another_look(workspace: Workspace) -> None:
    workspace.run(definition(), rows(40, 5))
    other = definition(prompt=Prompt(user="Label it. {{ subject }}: {{ body }}"))
    status = workspace.run(other, rows(40, 5))
    assert shares(workspace, status.submission).look == 2
    again = workspace.run(other, rows(41, 5))
    assert shares(workspace, again.submission).look == 2, "more rows with the same definition are the same look"


def test_a_look_counts_after_its_files_are_pruned(workspace: Workspace) -> None:
    looks = []
    for number in range(4):
        prompt = Prompt(user=f"Label it, try {number}. {{{{ subject }}}}: {{{{ body }}}}")
        status = workspace.run(definition(prompt=prompt), rows(40, 5))
        looks.append(shares(workspace, status.submission).look)
        workspace.engine().ledger.submissions.mark_delivered(status.submission.submission_id)
        workspace.skipped += timedelta(days=60)
        pruning = workspace.engine().prune(timedelta(days=30), delete=True)
        assert bool(pruning.files) is (number > 0), "the newest submission stays"
    assert looks == [1, 2, 3, 4]
    again = workspace.run(definition(prompt=prompt), rows(41, 5))
    assert shares(workspace, again.submission).look == 4, "more rows with the same definition are the same look"


def test_money_is_reserved_for_the_copies_until_the_decision(tmp_path: Any) -> None:
    for answer, folder in ((by_group, "shared"), (by_copy, "asked")):
        with Emulator(answer=answer) as emulator:
            workspace = Workspace(tmp_path / folder, emulator)
            engine = workspace.engine()
            preview = engine.preview(definition(), rows(40, 5))
            submission = engine.plan(definition(), rows(40, 5))
            assert submission.reserved_usd == preview.held_usd
            assert submission.reserved_usd
            spent = engine.ledger.money.spent_usd("test")
            assert spent >= submission.reserved_usd, "a budget counts it"
            status = workspace.finish(definition(), submission.submission_id)
            assert engine.ledger.money.spent_usd("test") == status.submission.cost_usd, "nothing stays reserved"


def test_an_erasure_before_the_decision_leaves_no_copy_counted_as_reused(workspace: Workspace) -> None:
    engine = workspace.engine()
    submission = engine.plan(definition(), rows(40, 5))
    assert submission.reused == 0
    engine.eraser.add_tombstones("ticket_labels", ["g3c2"], None)
    assert engine.eraser.erase("ticket_labels") == []
    after = engine.ledger.submissions.get(submission.submission_id)
    assert (after.requests, after.reused) == (199, 0)


def test_a_copy_of_the_second_round_has_all_attempts_of_its_own(tmp_path: Any) -> None:
    first: set[tuple[int, int]] = set()
    times: Counter[tuple[int, int]] = Counter()

    def answer(body: Any, url: str) -> Any:
        place = place_of(body)
        times[place] += 1
        if len(first) < 100:
            first.add(place)
        # No row of the first round of these groups gets a good answer, and their copies get one at the second attempt.
        is_bad = place[0] % 10 == 0 and (place in first or times[place] == 1)
        return "no JSON" if is_bad else by_group(body, url)

    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        near = Near(text="body", target="topic", error=0.3, sample=60)
        asked_for = definition(near, resend=Resend(reuse=Reuse(near=near), max_waves=2))
        status = workspace.run(asked_for, rows(40, 5))
        found = labels(workspace, status, asked_for)
        copies = [place for place in found if place[0] % 10 == 0 and place not in first]
        assert copies
        assert all(found[place]["llm_outcome"] == "succeeded" for place in copies)
        assert {times[place] for place in copies} == {2}


def test_copies_share_the_answer_that_a_fallback_gives_their_leader(tmp_path: Any) -> None:
    def answer(body: Any, url: str) -> Any:
        group, _ = place_of(body)
        return "no JSON" if body["model"] == "gpt-4o" and group % 2 == 0 else by_group(body, url)

    own = definition()
    own = replace(own, resend=replace(own.resend, fallback=["openai/gpt-4o-mini"], invalid_waves=1))
    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        status = workspace.run(own, rows(40, 5))
        assert status.submission.outcomes == {"succeeded": 200}
        labels = workspace.engine().labels(own, status.submission.submission_id).labels.to_pylist()
        shared = [row for row in labels if row["llm_reuse"] == "near"]
        assert len(shared) == 100
        for row in labels:
            group = int(row["ticket_id"][1:].split("c")[0])
            assert row["topic"] == TOPICS[group % 3]
            assert row["llm_model"].startswith("gpt-4o-mini") is (group % 2 == 0)
        # The leaders and the audit were asked of both models, where the first failed.
        sent = asked(workspace)
        assert len(sent) == 100
        assert all(times == 1 + (group % 2 == 0) for (group, _), times in sent.items())


def test_held_copies_go_to_the_fallback_too_if_the_audit_fails(tmp_path: Any) -> None:
    def answer(body: Any, url: str) -> Any:
        group, _ = place_of(body)
        return "no JSON" if body["model"] == "gpt-4o" and group % 2 == 0 else by_copy(body, url)

    own = definition()
    own = replace(own, resend=replace(own.resend, fallback=["openai/gpt-4o-mini"], invalid_waves=1))
    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        status = workspace.run(own, rows(40, 5))
        assert status.submission.outcomes == {"succeeded": 200}
        labels = workspace.engine().labels(own, status.submission.submission_id).labels
        assert labels["llm_reuse"].null_count == 200
        assert Counter(asked(workspace).values()) == {1: 100, 2: 100}


QUOTING = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": list(TOPICS)}, "quote": {"type": "string"}},
    "required": ["topic", "quote"],
}


def test_a_quote_is_looked_for_in_the_text_of_each_copy(tmp_path: Any) -> None:
    def answer(body: Any, _url: str) -> Any:
        group, copy = place_of(body)
        # Half of the quotes have the words in which copies differ.
        quote = f"copy {copy}" if group % 2 else f"number {group} of many"
        return {"topic": TOPICS[group % 3], "quote": quote}

    evidence = Evidence({"quote": "body"}, reject_missing=True, min_score=1)
    own = definition(evidence=evidence, keep=["body"], response=QUOTING)
    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        status = workspace.run(own, rows(40, 5))
        labeled = workspace.engine().labels(own, status.submission.submission_id)
        assert labeled.labels.num_rows + labeled.rejects.num_rows == 200
        found = labeled.labels.to_pylist()
        assert {row["body"][row["quote_start"] : row["quote_end"]] == row["quote"] for row in found} == {True}
        shared = [row for row in found if row["llm_reuse"] == "near"]
        assert shared
        assert not any(int(row["ticket_id"][1:].split("c")[0]) % 2 for row in shared)
        rejected = labeled.rejects.to_pylist()
        assert len(shared) + len(rejected) == 100
        assert {row["llm_outcome"] for row in rejected} == {"ungrounded"}


def test_masked_texts_are_copies_only_with_the_same_placeholders_in_the_same_order(workspace: Workspace) -> None:
    prompt = Prompt(user="{{ subject }}: {{ body }}", mask=Mask(columns=["body"]))
    plain = rows(40, 5)
    with_address = pl.col("body") + pl.concat_str(pl.lit(" from "), pl.col("ticket_id"), pl.lit("@example.com"))
    # Each other copy of the first group has one address more.
    more = pl.when(pl.col("ticket_id").is_in(["g0c1", "g0c3"])).then(pl.lit(" to me@example.org")).otherwise(pl.lit(""))
    masked = plain.with_columns(body=with_address + more)
    own = definition(prompt=prompt)
    status = workspace.run(own, masked)
    shares = shares_of(workspace.engine().payloads, status.submission)
    assert shares is not None
    assert shares.rows == 39 * 4 + 2 + 1
    sent = "".join(
        str(line)
        for shard in workspace.engine().ledger.shards.of_submission(status.submission.submission_id)
        for line in workspace.engine().payloads.lines(shard.path)
    )
    assert "@example" not in sent
    assert "[EMAIL_1]" in sent
    leaders = dict(zip(shares.pairs["llm_request_id"].to_pylist(), shares.pairs["leader"].to_pylist(), strict=True))
    of_key = dict(
        zip(
            *(
                workspace.engine().payloads.read_table(status.submission.manifest)[name].to_pylist()
                for name in ("ticket_id", "llm_request_id")
            ),
            strict=True,
        )
    )
    two = {of_key[key] for key in ("g0c1", "g0c3")}
    for one in (of_key[f"g0c{copy}"] for copy in range(5)):
        assert one not in leaders or (leaders[one] in two) is (one in two)
