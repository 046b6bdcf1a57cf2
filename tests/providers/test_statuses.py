"""Every status that a vendor documents is one of ours. An unknown word is RUNNING, since waiting loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest

from dagster_llm_batch.providers.anthropic import batches as anthropic_batch
from dagster_llm_batch.providers.bedrock import batches as bedrock_jobs
from dagster_llm_batch.providers.google import gemini_batches as gemini_operations
from dagster_llm_batch.providers.google import vertex_batches as vertex_jobs
from dagster_llm_batch.providers.openai_api import batches as openai_batch
from dagster_llm_batch.types import BatchReport, BatchStatus
from tests.tables import table

PENDING, RUNNING, CANCELING = BatchStatus.PENDING, BatchStatus.RUNNING, BatchStatus.CANCELING
ENDED, EXPIRED, CANCELED, FAILED = BatchStatus.ENDED, BatchStatus.EXPIRED, BatchStatus.CANCELED, BatchStatus.FAILED


def openai(word: str) -> BatchReport:
    return openai_batch.read_batch(SimpleNamespace(id="b", status=word))


def anthropic(word: str) -> BatchReport:
    return anthropic_batch.read_batch(SimpleNamespace(id="b", processing_status=word))


def bedrock(word: str) -> BatchReport:
    return bedrock_jobs.read_job({"jobArn": "b", "status": word})


def vertex(word: str) -> BatchReport:
    return vertex_jobs.read_job("b", {"state": f"JOB_STATE_{word}"})


def gemini(word: str) -> BatchReport:
    return gemini_operations.read_operation("b", {"name": "b", "metadata": {"state": f"BATCH_STATE_{word}"}})


DOCUMENTED: Mapping[Callable[[str], BatchReport], Mapping[str, BatchStatus]] = {
    openai: {
        "validating": PENDING,
        "scheduling": PENDING,  # AIBrix 0.8.0
        "in_progress": RUNNING,
        "finalizing": RUNNING,
        "completed": ENDED,
        "failed": FAILED,
        "expired": EXPIRED,
        "cancelling": CANCELING,
        "cancelled": CANCELED,
    },
    anthropic: {"in_progress": RUNNING, "canceling": CANCELING, "ended": ENDED},
    bedrock: {
        "Submitted": PENDING,
        "Validating": PENDING,
        "Scheduled": PENDING,
        "InProgress": RUNNING,
        "Completed": ENDED,
        "PartiallyCompleted": ENDED,
        "Failed": FAILED,
        "Stopping": CANCELING,
        "Stopped": CANCELED,
        "Expired": EXPIRED,
    },
    vertex: {
        "QUEUED": PENDING,
        "PENDING": PENDING,
        "RUNNING": RUNNING,
        "UPDATING": RUNNING,
        "PAUSED": RUNNING,
        "SUCCEEDED": ENDED,
        "PARTIALLY_SUCCEEDED": ENDED,
        "FAILED": FAILED,
        "CANCELLING": CANCELING,
        "CANCELLED": CANCELED,
        "EXPIRED": EXPIRED,
    },
    gemini: {
        "PENDING": PENDING,
        "RUNNING": RUNNING,
        "SUCCEEDED": ENDED,
        "FAILED": FAILED,
        "CANCELLED": CANCELED,
        "EXPIRED": EXPIRED,
    },
}


@table(
    ("read", "word", "status"),
    [
        pytest.param(read, word, status, id=f"{read.__name__}-{word}")
        for read, words in DOCUMENTED.items()
        for word, status in words.items()
    ],
)
def test_a_documented_status_is_one_of_ours(read: Callable[[str], BatchReport], word: str, status: BatchStatus) -> None:
    assert read(word).status is status


@pytest.mark.parametrize("read", DOCUMENTED, ids=lambda read: read.__name__)
def test_an_unknown_status_is_running_and_says_its_word(read: Callable[[str], BatchReport]) -> None:
    report = read("NEVER_SEEN")
    assert report.status is RUNNING
    assert "never_seen" in (report.reason or "").lower()
