"""Decisions do not depend on the wording of texts in the ledger, or of constants that are sentences."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from test_cost_limits import FREE_TEXT, reply, spend
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Engine, Labeling, Limits
from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import find_conditions
from dagster_llm_batch.errors import UnreadableError
from dagster_llm_batch.loop.budget import NO_ROOM_LEFT
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.loop.present_waits import find_waits
from dagster_llm_batch.loop.status import Advice
from dagster_llm_batch.states import HoldReason
from dagster_llm_batch.storage.ledger import events
from dagster_llm_batch.storage.ledger.events import StatusChanged
from dagster_llm_batch.storage.ledger.queues import LACKS_MONEY
from dagster_llm_batch.storage.ledger.schema import METADATA, _ForeignText
from dagster_llm_batch.testing.emulator import BatchFault, Emulator, WireFault

OWN = "dagster_llm_batch."
# Vendors, and the emulator of their servers, decide by their own words.
OF_VENDORS = ("dagster_llm_batch.providers.", "dagster_llm_batch.testing.")
SQL = re.compile(r"\s*(SELECT|UPDATE|INSERT)\b")
SENTENCE = re.compile(r"[a-z]{2,} [a-z]{2,}")
OTHER = "other words"

# Columns of text written by people or vendors, or written for people: all of them are reworded, except these.
NOT_OURS = {("judgment", "comment"), ("judgment", "annotator"), ("batch", "batch_id"), ("upload", "file_id")}
# Fields of events that are text for people, and fields that are names.
FIELDS_OF_WORDS = {"words", "problem", "then", "source", "money"}
FIELDS_OF_NAMES = {
    *("batch_id", "before", "after", "cause", "by", "old", "new", "half", "unit", "sent_since", "kind"),
    *("form_id", "annotator", "group", "text", "counts", "tier", "known_usd", "realtime_usd"),
}

# All that is text in the database becomes other text at once, in the transaction that writes it.
TRIGGERS = f"""
    CREATE TRIGGER other_event AFTER INSERT ON event BEGIN
        UPDATE event SET
            detail = '{OTHER}',
            data = json_replace(
                CASE WHEN json_extract(data, '$.money') IS NULL THEN data
                ELSE json_replace(data, '$.money', '{OTHER}') END,
                '$.problem', '{OTHER}', '$.then', '{OTHER}', '$.source', '{OTHER}'
            )
        WHERE event_id = NEW.event_id;
    END;
    CREATE TRIGGER other_reason AFTER UPDATE OF reason ON shard WHEN NEW.reason IS NOT NULL BEGIN
        UPDATE shard SET reason = '{OTHER}' WHERE shard_id = NEW.shard_id;
    END;
    CREATE TRIGGER other_hold AFTER INSERT ON hold BEGIN
        UPDATE hold SET
            words = iif(words IS NULL, NULL, '{OTHER}'),
            data = json_replace(data, '$.told[0].problem', '{OTHER}', '$.told[0].then', '{OTHER}')
        WHERE subject = NEW.subject AND reason = NEW.reason;
    END;
    CREATE TRIGGER other_told AFTER UPDATE OF data, words ON hold WHEN NEW.words <> '{OTHER}' BEGIN
        UPDATE hold SET words = '{OTHER}' WHERE subject = NEW.subject AND reason = NEW.reason;
    END;
"""


def reword(monkeypatch: pytest.MonkeyPatch, ledger: Path) -> set[str]:
    """Give other words to all sentences that are constants, and to all that this ledger stores; return the former."""
    found: set[str] = set()
    ours = (name for name in sys.modules if name.startswith(OWN) and not name.startswith(OF_VENDORS))
    for module in [sys.modules[name] for name in ours]:
        for name, value in list(vars(module).items()):
            is_sentence = isinstance(value, str) and SENTENCE.search(value) and not SQL.match(value)
            if is_sentence and name.strip("_").isupper():
                found.add(value)
                monkeypatch.setattr(module, name, OTHER)
    for reason, rule in RULES.items():
        words = {"message": lambda *_: Advice(OTHER, OTHER), "waits_for": OTHER, "told": OTHER, "exits": (OTHER,)}
        monkeypatch.setitem(RULES, reason, rule._replace(**words))
    with closing(sqlite3.connect(ledger)) as connection:
        connection.executescript(TRIGGERS)
    return found


class Journey:
    """Six datasets of one deployment, each in another situation.

    One fills a queue, one waits in it and lacks money, one is in doubt, and one is put back. One is not sent and then
    gets another definition, and one has results that are unreadable for some time.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.definitions: dict[str, Labeling] = {
            "fills": labeling(**FREE_TEXT, asset="fills"),
            "lacks": labeling(
                **FREE_TEXT,
                asset="lacks",
                max_cost_usd="0.1",
                spend=spend("hard"),
                limits=Limits(max_requests_per_batch=3),
            ),
            "doubtful": labeling(**FREE_TEXT, asset="doubtful", model="openai/gpt-4o-mini"),
            "put back": labeling(**FREE_TEXT, asset="put back", model="openai/gpt-4.1-mini"),
            "changed": labeling(**FREE_TEXT, asset="changed", model="openai/gpt-4.1"),
            "unread": labeling(**FREE_TEXT, asset="unread", model="openai/gpt-4.1-nano"),
        }
        self.ids: dict[str, str] = {}
        self.engine().ledger.submissions.list_all("test")

    def engine(self) -> Engine:
        queues = {"openai/gpt-4o": QueueLimit(max_batches=1)}
        # Of halves of one shard, the ids decide which has the place in the queue.
        return self.workspace.engine(queue_limits=queues, new_id=lambda: f"s{len(self.ids)}")

    def begin(self, name: str, rows: int) -> None:
        engine, start = self.engine(), 100 * len(self.ids)
        self.ids[name] = engine.plan(self.definitions[name], tickets(rows, start=start)).submission_id
        engine.submit(self.definitions[name], self.ids[name])

    def advance(self, name: str) -> None:
        # Its note in the ledger makes the next attempt.
        with suppress(UnreadableError):
            self.engine().advance(self.definitions[name], self.ids[name])

    def poll(self) -> None:
        self.workspace.emulator.settle()
        engine = self.engine()
        engine.poll(engine.ledger.shards.in_flight("test"), lambda *_: None)

    def steps(self) -> Iterator[str]:
        """Run to the end; yield the name of each step after it."""
        workspace, emulator = self.workspace, self.workspace.emulator
        self.begin("fills", 4)
        yield "the queue is full"
        self.begin("lacks", 9)
        yield "it waits in the queue, and for money"
        emulator.inject(WireFault(kind="status", route="POST /v1/batches", status=500))
        self.begin("doubtful", 3)
        yield "it is in doubt"
        workspace.skipped += timedelta(seconds=290)
        self.advance("doubtful")
        yield "it is in doubt still"
        workspace.skipped += timedelta(seconds=20)
        self.advance("doubtful")
        yield "it is sent"
        emulator.inject(BatchFault(kind="fails", batches=[len(emulator.books.batches)]))
        self.begin("put back", 1)
        self.poll()
        yield "it is put back"
        workspace.skipped += timedelta(hours=1)
        # The batch found for its tag is not the one that failed.
        emulator.inject(WireFault(kind="status", route="POST /v1/batches", status=500))
        self.advance("put back")
        yield "it is in doubt, after it was put back"
        emulator.inject(WireFault(kind="status", route="POST /v1/files", status=429, retry_after="0.01", times=None))
        self.begin("changed", 2)
        emulator.clear_faults()
        yield "it is not sent"
        self.definitions["changed"] = replace(
            self.definitions["changed"], prompt=Prompt(user="Another question: {{ body }}")
        )
        self.advance("changed")
        yield "its definition is another one"
        self.begin("unread", 2)
        self.poll()
        emulator.inject(
            WireFault(kind="status", route="GET /v1/files/*/content", status=503, retry_after="0.01", times=9)
        )
        self.advance("unread")
        yield "its results cannot be read"
        for at in range(12):
            workspace.skipped += timedelta(hours=1)
            self.poll()
            for name in self.ids:
                self.advance(name)
            yield f"on {at}"

    def shown(self) -> list[Any]:
        """Return the decisions so far, without ids, times and wording."""
        engine = self.engine()
        outlook, ledger = engine.activity.outlook(), engine.ledger
        progress = {one.submission.submission_id: one for one in ledger.submissions.progress("test")}
        shown: list[Any] = []
        for name, key in self.ids.items():
            submission, shards = ledger.submissions.get_with_shards(key)
            # Status reports follow the vendor's timing, so they are left out. A repeated wait in other words is not a
            # decision.
            found = (event.kind for event in ledger.events.of_submission(key) if event.kind != StatusChanged.kind)
            kinds = [kind for kind, _ in groupby(found)]
            of = [
                (
                    s.wave,
                    s.number,
                    s.state,
                    s.batch.status,
                    s.cause,
                    s.reason_kind,
                    s.requests,
                    s.waits_until is not None,
                )
                for s in shards
            ]
            waits = outlook.waits_for_money(key) is not None, outlook.waited(key) if outlook.is_open(key) else None
            unsent = [reason is not None for reason in engine.unsent(key)]
            can = key in progress and engine.activity.can_advance(progress[key])
            told = [(wait.reason, wait.since is None, len(wait.shards)) for wait in find_waits(engine.deployment, key)]
            of_run = (outlook.stranded(key) is not None, outlook.is_in_trouble(key)) if outlook.is_open(key) else None
            shown.append((name, submission.state, submission.outcomes, kinds, of, waits, unsent, can, told, of_run))
        conditions = find_conditions(read_facts(engine, None, ()))
        return [*shown, [(one.kind, one.submission.asset) for one in conditions]]


def travel(workspace: Workspace) -> dict[str, list[Any]]:
    journey = Journey(workspace)
    return {step: journey.shown() for step in journey.steps()}


def test_each_column_and_each_field_of_words_is_one_that_is_reworded() -> None:
    columns = {
        (table.name, column.name)
        for table in METADATA.tables.values()
        for column in table.columns
        if isinstance(column.type, _ForeignText)
    }
    reworded = set(re.findall(r"UPDATE (\w+) SET\s+(\w+) =", TRIGGERS))
    assert columns == {*reworded, *NOT_OURS}
    kinds = [kind for name in events.__all__ if is_dataclass(kind := getattr(events, name))]
    named = {field.name for kind in kinds for field in fields(kind) if "str" in str(field.type)}
    assert named == FIELDS_OF_WORDS | FIELDS_OF_NAMES
    for field in FIELDS_OF_WORDS - {"words"}:
        assert f"$.{field}'" in TRIGGERS, field


@pytest.mark.slow
def test_no_decision_depends_on_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare two journeys of some twenty steps, through six datasets."""
    journeys, billed = [], []
    for name in ("usual", "reworded"):
        (folder := tmp_path / name).mkdir()
        with Emulator(answer=reply(1_500, text="word " * 9)) as emulator:
            workspace = Workspace(folder, emulator)
            workspace.engine().ledger.submissions.list_all("test")
            if name == "reworded":
                assert {LACKS_MONEY, NO_ROOM_LEFT} <= reword(monkeypatch, folder / "ledger.sqlite")
            journeys.append(travel(workspace))
            billed.append(len(emulator.books.executions))
    usual, reworded = journeys
    text = str(usual)
    for word in ("put_back", "ambiguous", "not_sent", "lacks_money", "over_budget", "in doubt", "room for money"):
        assert word in text, word
    seen = {reason for reason in HoldReason if repr(reason) in text}
    assert seen >= {
        *(HoldReason.PLACE, HoldReason.MONEY, HoldReason.FULL_QUEUE, HoldReason.IN_DOUBT, HoldReason.NOT_SENT),
        *(HoldReason.CHANGED, HoldReason.OVER_BUDGET, HoldReason.UNREADABLE),
    }
    assert list(usual) == list(reworded)
    for step, shown in usual.items():
        for one, other in zip(shown, reworded[step], strict=True):
            assert other == one, step
    assert billed[0] == billed[1]
