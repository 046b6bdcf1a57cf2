"""Several real processes at once, one of them killed: shared batches and budgets hold across them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from decimal import Decimal
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.definition.rules import Budget
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.errors import BudgetError, LeaseError, TransientError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, RowFault, WireFault
from tests.processes import PROCESSES

PARTITIONS = 3


def engine_of(folder: Path, base_url: str, budget: str | None = None) -> Engine:
    return Engine(
        Deployment(
            {"openai": OpenAIProvider(DEFAULT_KEY, base_url, timeout_seconds=30)},
            Ledger(folder / "ledger.sqlite"),
            PayloadStore(str(folder / "payloads")),
            "test",
            lease_wait_seconds=5.0,
            budgets=[] if budget is None else [Budget(budget, "ever")],
        )
    )


def bring_home(folder: Path, base_url: str, submission_id: str, start: Any) -> None:
    engine, definition = engine_of(folder, base_url), labeling()
    start.wait()
    while not engine.status(submission_id).is_settled:
        with contextlib.suppress(LeaseError, TransientError):
            engine.advance(definition, submission_id)
        time.sleep(0.05)


def plan_one(folder: Path, base_url: str, partition: int, budget: str, start: Any) -> None:
    engine = engine_of(folder, base_url, budget)
    start.wait()
    with contextlib.suppress(BudgetError):
        engine.plan(labeling(), tickets(3, start=3 * partition), partition=f"p{partition}")


def advance_one(folder: Path, base_url: str, submission_id: str, budget: str, start: Any) -> None:
    engine = engine_of(folder, base_url, budget)
    start.wait()
    while not engine.status(submission_id).is_settled and engine.ledger.submissions.get(submission_id).waves == 1:
        with contextlib.suppress(LeaseError):
            engine.collect(labeling(), submission_id)
        time.sleep(0.05)


@contextlib.contextmanager
def running(work: Any, arguments: list[tuple[Any, ...]]) -> Iterator[list[BaseProcess]]:
    """Start one process for each tuple of arguments, and release all at the same moment."""
    start = PROCESSES.Barrier(len(arguments) + 1)
    processes = [PROCESSES.Process(target=work, args=(*given, start), daemon=True) for given in arguments]
    for process in processes:
        process.start()
    start.wait(120)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def ended(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


@contextlib.contextmanager
def settling(workspace: Workspace) -> Iterator[None]:
    """Let batches end in the background."""
    stop = Event()

    def settle() -> None:
        while not stop.wait(0.1):
            workspace.emulator.settle()

    thread = Thread(target=settle)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_processes_find_and_bring_home_one_shared_batch_at_once_and_one_of_them_is_killed(workspace: Workspace) -> None:
    definition, engine = labeling(), workspace.engine()
    ids = [engine.plan(definition, tickets(3, start=3 * n), partition=f"p{n}").submission_id for n in range(PARTITIONS)]
    send = WireFault(kind="close", route="POST /v1/batches", when="after")
    find = WireFault(kind="close", route="GET /v1/batches*", times=1)  # so that it is left for them to find
    workspace.emulator.inject(send, find)
    engine.submit_together(definition, ids)
    assert [engine.status(submission_id).states for submission_id in ids] == [{"submitting": 1}] * PARTITIONS
    download = WireFault(kind="slow", route="GET /v1/files/*/content", seconds=1.0, times=2)
    workspace.emulator.inject(download)
    with (
        settling(workspace),
        running(
            bring_home,
            [(workspace.tmp_path, workspace.emulator.openai_base_url, submission_id) for submission_id in ids],
        ) as processes,
    ):
        give_up_at = time.monotonic() + 120
        while not workspace.emulator.struck(download):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        processes[0].kill()  # as likely as not in its download
        ended(processes[1:])
        bring_home(workspace.tmp_path, workspace.emulator.openai_base_url, ids[0], Now())
    for submission_id in ids:
        assert_total(workspace, definition, submission_id, 3)
        assert workspace.engine().status(submission_id).submission.outcomes == {"succeeded": 3}
    assert len(workspace.emulator.books.batches) == 1
    assert len(billed(workspace)) == len(set(billed(workspace))) == 3 * PARTITIONS


class Now:
    def wait(self) -> None:
        """Return at once."""


@pytest.mark.slow
def test_a_budget_holds_over_processes_that_plan_and_retry_at_once(workspace: Workspace) -> None:
    definition = labeling()
    base_url = workspace.emulator.openai_base_url
    one = workspace.engine().plan(definition, tickets(3), partition="sample").estimated_usd
    assert one is not None
    workspace.engine().cancel(workspace.engine().ledger.submissions.list_all("test")[0].submission_id)
    budget = str(one * Decimal("2.5"))
    arguments = [(workspace.tmp_path, base_url, number, budget) for number in range(PARTITIONS)]
    with running(plan_one, arguments) as processes:
        ended(processes)
    planned = [s.submission_id for s in workspace.engine().ledger.submissions.list_all("test") if s.state == "open"]
    assert len(planned) == 2
    for submission_id in planned:
        workspace.engine().submit(definition, submission_id)
    workspace.emulator.inject(RowFault(status_code=503))
    workspace.emulator.settle()
    spent = workspace.engine().ledger.money.spent_usd("test")
    arguments = [
        (workspace.tmp_path, base_url, submission_id, str(spent * Decimal("0.75"))) for submission_id in planned
    ]
    with running(advance_one, arguments) as processes:
        ended(processes)
    assert sorted(workspace.engine().ledger.submissions.get(submission_id).waves for submission_id in planned) == [1, 2]
