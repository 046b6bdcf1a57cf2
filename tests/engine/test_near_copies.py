"""Near copies over the emulator: which rows are asked, which share an answer, and the cases that must never happen."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from decimal import Decimal
from io import BytesIO
from typing import Any

import polars as pl
import pytest
from workspace import Workspace, labeling

from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.near_copies import EarlierGroups, NearCopies
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.quoted_columns import Evidence
from dagster_llm_batch.core.reuse import Near, Reuse
from dagster_llm_batch.engine import Labeling, Resend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.share_files import shares_of
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
        ({"cascade": Cascade("openai/gpt-5", "topic", score="urgency")}, "does not go with cascade"),
        ({"evidence": Evidence({"topic": "body"}), "keep": ["body"]}, "does not go with checks.evidence"),
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
        ({"error": 0}, "above 0 and below 1"),
        ({"sample": 5}, "is too small"),
    ],
)
def test_a_bad_setting_is_refused(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        definition(Near(**{"text": "body", "target": "topic", **settings}))


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
