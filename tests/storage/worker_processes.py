"""Runs and sensors on one ledger, as separate processes. The parent emulates the provider."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pyarrow as pa

from dagster_llm_batch import Limits
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import LeaseError, LedgerError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

NAMESPACE = "prod"
DAYS = [f"2026-01-0{number}" for number in range(1, 5)]
ROWS = 8


def definition() -> Labeling:
    prompt = Prompt(user="{{ text }}")
    return Labeling(
        asset="labels",
        model="openai/gpt-4o",
        key="id",
        prompt=prompt,
        response=None,
        limits=Limits(max_requests_per_batch=3),
    )


def rows(day: str) -> pa.Table:
    names = [f"{day}-{number}" for number in range(ROWS)]
    return pa.table({"id": names, "text": [f"Ticket {name}." for name in names]})


def engine(url: str, base_url: str, folder: Path) -> Engine:
    provider = OpenAIProvider(DEFAULT_KEY, base_url, account="one")
    return Engine(
        Deployment({"openai": provider}, Ledger(url), PayloadStore(str(folder)), NAMESPACE, sleep=lambda _: None)
    )


def run_until_settled(url: str, base_url: str, folder: Path, number: int, barrier, answers) -> None:
    """Run as a worker: plan and advance every partition, in a random order, until all are settled."""
    mine, order = engine(url, base_url, folder), random.Random(number)
    barrier.wait()
    refused, open_days = 0, set(DAYS)
    try:
        while open_days:
            for day in order.sample(sorted(open_days), len(open_days)):
                try:
                    submission = mine.plan(definition(), rows(day), partition=day)
                    if mine.advance(definition(), submission.submission_id).is_settled:
                        open_days.discard(day)
                except LeaseError:
                    refused += 1
            time.sleep(0.05)
        answers.put(("settled", refused))
    except BaseException as error:  # noqa: BLE001 -- the parent tells
        answers.put((repr(error), refused))
    mine.ledger.close()


def watch_until_settled(url: str, base_url: str, folder: Path, number: int, barrier, answers) -> None:
    """Run as a sensor: poll batches and look for lost ones, until all submissions are settled."""
    mine = engine(url, base_url, folder)
    barrier.wait()
    try:
        while len(known := mine.ledger.submissions.list_all(NAMESPACE)) < len(DAYS) or any(
            not s.is_settled for s in known
        ):
            mine.poll(mine.ledger.shards.in_flight(NAMESPACE))
            for progress in mine.ledger.submissions.progress(NAMESPACE):
                try:
                    if mine.activity.needs_recovery(progress):
                        mine.recover_batches(progress.submission.submission_id)
                except LeaseError:
                    continue
            time.sleep(0.05)
        answers.put(("settled", number))
    except BaseException as error:  # noqa: BLE001 -- the parent tells
        answers.put((repr(error), number))
    mine.ledger.close()


def advance_until_settled(mine: Engine, failures: list[LedgerError], wait_out) -> None:
    """Advance one submission until it is settled; call `wait_out` after each error of the ledger."""
    while True:
        try:
            submission = mine.plan(definition(), rows(DAYS[0]), partition=DAYS[0])
            if mine.advance(definition(), submission.submission_id).is_settled:
                return
        except LedgerError as error:
            failures.append(error)
            wait_out()
        time.sleep(0.01)


def collect_until_settled(url: str, base_url: str, folder: Path, submission_id: str, barrier, answers) -> None:
    """Run for one partition: collect it until it is settled."""
    mine = engine(url, base_url, folder)
    barrier.wait()
    try:
        while not mine.collect(definition(), submission_id).is_settled:
            time.sleep(0.05)
        answers.put("settled")
    except BaseException as error:  # noqa: BLE001 -- the parent tells
        answers.put(repr(error))
    mine.ledger.close()
