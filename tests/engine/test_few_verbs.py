"""The engine with a provider of the user's own that has submit, find, poll, fetch and a codec alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, BinaryIO

import pytest
from workspace import Workspace, assert_total, labeling, tickets

from dagster_llm_batch.definition.labeling import Limits, Realtime
from dagster_llm_batch.errors import CannotStopError, ConfigError
from dagster_llm_batch.protocols import CAPABILITIES, ChecksParameters, Provider
from dagster_llm_batch.types import Absent, BatchReport, FindHints, Found, RequestSpec, StatusUnknown, Undecided
from dagster_llm_batch.upkeep.uploads import UploadRemover


class PlainCodec:
    """OpenAI's lines, without a list of parameters."""

    def __init__(self, real: Any) -> None:
        self.limits, self.enforces_format = real.limits, real.enforces_format
        self.encode, self.decode = real.encode, real.decode


class FourVerbs:
    """OpenAI's batches, with only the methods that every provider has."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.name, self.account, self.price_book = real.name, real.account, real.price_book
        self.settle_seconds, self.window = real.settle_seconds, real.window
        self.default_output_tokens = real.default_output_tokens

    def codec(self, spec: RequestSpec) -> Any:
        return PlainCodec(self._real.codec(spec))

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        return self._real.submit(lines, spec, tag)

    def find(self, tag: str, hints: FindHints) -> Found | Absent | Undecided | StatusUnknown:
        return self._real.find(tag, hints)

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        return self._real.poll(batch_ids)

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        return self._real.fetch(batch_id)


@pytest.fixture
def plain(workspace: Workspace) -> Workspace:
    workspace.providers = {"openai": FourVerbs(workspace.openai())}  # type: ignore[dict-item]
    return workspace


def test_it_is_a_provider_without_a_capability(plain: Workspace) -> None:
    provider = plain.providers["openai"]
    assert isinstance(provider, Provider)
    assert [verb for verb, capability in CAPABILITIES.items() if isinstance(provider, capability)] == []
    assert not isinstance(provider.codec(labeling().spec), ChecksParameters)


def test_its_rows_are_labeled(plain: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    submission = plain.run(definition, tickets(5)).submission
    assert submission.outcomes == {"succeeded": 5}
    labels, _ = assert_total(plain, definition, submission.submission_id, 5)
    assert len(labels) == 5


def test_who_cancels_is_told_that_the_batch_runs_on_and_its_answers_are_kept(plain: Workspace) -> None:
    definition, engine = labeling(), plain.engine()
    submission_id = engine.plan(definition, tickets(3)).submission_id
    [batch_id] = engine.submit(definition, submission_id).batch_ids
    with pytest.raises(CannotStopError, match=f"'openai' cannot stop the batch '{batch_id}'"):
        plain.engine().cancel(submission_id)
    assert [record.id for record in plain.emulator.books.batches] == [batch_id]
    assert plain.finish(definition, submission_id).submission.outcomes == {"succeeded": 3}


def test_who_erases_is_told_that_nothing_is_deleted_there(plain: Workspace) -> None:
    plain.run(labeling(), tickets(3))
    eraser = plain.engine().eraser
    eraser.add_tombstones("ticket_labels", ["t1"], None)
    eraser.erase("ticket_labels")
    [copy] = eraser.erase_at_providers("ticket_labels")
    assert "'openai' cannot delete" in (copy.left or "")


def test_its_request_files_are_nobodys_to_delete(plain: Workspace) -> None:
    plain.run(labeling(), tickets(3))
    plain.skipped += timedelta(days=3)
    remover = UploadRemover(plain.engine(keep_request_files=timedelta(hours=1)).deployment)
    assert len(remover.due()) == 1
    assert remover.remove_files().troubles == {}
    assert remover.due() == []
    assert len(remover.remove_results(timedelta()).kept) == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"realtime": Realtime(urgent="now")},
        {"realtime": Realtime(deadline=timedelta(hours=2))},
    ],
    ids=["urgent", "deadline"],
)
def test_who_wants_real_time_is_told_before_anything_is_planned(plain: Workspace, asked: dict[str, Any]) -> None:
    rows = tickets(3).with_columns(now=True)
    with pytest.raises(ConfigError, match="'openai' answers batches alone"):
        plain.engine().plan(labeling(**asked), rows)
    assert plain.engine().ledger.submissions.list_all("test") == []
    assert plain.emulator.books.calls == []


def test_a_lane_for_too_few_requests_is_of_no_matter_where_a_batch_may_have_one(plain: Workspace) -> None:
    plan = plain.engine().plan(labeling(limits=Limits(below_minimum="realtime")), tickets(1))
    assert plan.requests == 1
