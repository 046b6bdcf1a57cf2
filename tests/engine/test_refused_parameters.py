"""A later version refuses a parameter: no further request has it, and answers to earlier requests become labels."""

from __future__ import annotations

from typing import Any

import pytest
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Labeling, Limits, Realtime
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.requests import OpenAILines
from dagster_llm_batch.providers.parameters import OPENAI_CHAT
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, RowFault
from dagster_llm_batch.types import RequestSpec

SEEDED = {"max_tokens": 50, "seed": 1}
WORDS = "There is no parameter 'seed'"


class Later(OpenAIProvider):
    """The provider of a later version, with one parameter less in the vendor's table."""

    def codec(self, spec: RequestSpec) -> OpenAILines:
        return OpenAILines(spec, form=OPENAI_CHAT._replace(names=OPENAI_CHAT.names - {"seed"}, types=None))


def upgrade(workspace: Workspace) -> None:
    provider = Later(DEFAULT_KEY, workspace.emulator.openai_base_url, timeout_seconds=5.0)
    assert provider.account == workspace.providers["openai"].account
    workspace.providers = {"openai": provider}


def seeded(**changes: Any) -> Labeling:
    return labeling(**{"params": SEEDED, **changes})


def send(workspace: Workspace, definition: Labeling, rows: Any, **deployment: Any) -> str:
    engine = workspace.engine(**deployment)
    submission_id = engine.plan(definition, rows).submission_id
    engine.submit(definition, submission_id)
    return submission_id


def test_what_was_sent_before_lands_and_is_refused_before_it_is_sent_again(workspace: Workspace) -> None:
    first = send(workspace, seeded(), tickets(3))
    upgrade(workspace)
    assert workspace.finish(seeded(), first).submission.outcomes == {"succeeded": 3}
    labels, _ = assert_total(workspace, seeded(), first, 3)
    assert labels.num_rows == 3
    assert workspace.engine().labels(seeded(), first, reread=True).labels.num_rows == 3
    for refuse in (
        lambda: workspace.engine().check(seeded()),
        lambda: workspace.engine().plan(seeded(), tickets(3, 9), partition="next"),
        lambda: workspace.engine().preview(seeded(), tickets(3, 9), partition="next", again=False),
    ):
        with pytest.raises(ConfigError, match=WORDS):
            refuse()
    assert len(workspace.emulator.books.batches) == 1


def test_what_was_sent_before_lands_after_params_were_corrected(workspace: Workspace) -> None:
    first = send(workspace, seeded(), tickets(3))
    upgrade(workspace)
    assert workspace.finish(labeling(), first).submission.outcomes == {"succeeded": 3}
    assert_total(workspace, labeling(), first, 3)


def test_no_wave_is_sent_by_it_and_what_came_lands_with_the_reason(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503))
    first = send(workspace, seeded(), tickets(4))
    upgrade(workspace)
    assert workspace.finish(seeded(), first).submission.outcomes == {"succeeded": 3, "errored": 1}
    assert len(workspace.emulator.books.batches) == 1
    held = workspace.engine().unsent(first).held or ""
    assert held.startswith("1 requests are not sent again: openai/gpt-4o would refuse it")
    assert WORDS in held
    workspace.emulator.clear_faults()
    # With corrected params, all is asked by the definition as it is now.
    assert workspace.run(labeling(), tickets(4)).submission.outcomes == {"succeeded": 4}


def test_what_is_planned_is_not_sent_by_it_and_the_rest_lands(workspace: Workspace) -> None:
    definition = seeded(limits=Limits(max_requests_per_batch=2))
    limit = {"queue_limits": {"openai": QueueLimit(max_batches=1)}}
    first = send(workspace, definition, tickets(6), **limit)
    upgrade(workspace)
    engine = workspace.engine(**limit)
    assert engine.advance(definition, first).submission.state is SubmissionState.OPEN
    assert WORDS in (engine.activity.outlook().stranded(first) or "")
    workspace.emulator.settle()
    assert engine.advance(definition, first).submission.outcomes == {"succeeded": 2, "canceled": 4}
    assert len(workspace.emulator.books.batches) == 1
    assert WORDS in (engine.unsent(first).held or "")
    assert_total(workspace, definition, first, 6)


def test_nothing_is_asked_by_it_in_real_time(workspace: Workspace) -> None:
    rows = tickets(3).with_columns(urgent=True)
    definition = seeded(realtime=Realtime(urgent="urgent"))
    first = workspace.engine().plan(definition, rows).submission_id
    upgrade(workspace)
    workspace.engine().submit(definition, first)
    assert workspace.engine().advance(definition, first).submission.outcomes == {"canceled": 3}
    assert billed(workspace) == []
