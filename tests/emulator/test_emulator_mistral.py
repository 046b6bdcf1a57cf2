"""Mistral's wire: it answers as Mistral did live on 2026-09-02 (OpenRouterTeam/docs, batch-research/mistral)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, ManualClock, RowFault

HOUR = 3_600.0


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(clock=ManualClock(), work_steps=2) as running:
        yield running


@pytest.fixture
def api(emulator: Emulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=emulator.mistral_base_url, headers={"authorization": f"Bearer {DEFAULT_KEY}"}) as client:
        yield client


def line(custom_id: str | None, **body: Any) -> bytes:
    asked = {"custom_id": custom_id, "body": {"messages": [{"role": "user", "content": "hello"}], **body}}
    return json.dumps(asked).encode() + b"\n"


def upload(api: httpx.Client, content: bytes) -> httpx.Response:
    return api.post("/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})


def create(api: httpx.Client, content: bytes, **more: Any) -> httpx.Response:
    file_id = upload(api, content).json()["id"]
    asked = {"input_files": [file_id], "model": "mistral-x", "endpoint": "/v1/chat/completions"}
    return api.post("/batch/jobs", json={**asked, **more})


def job(api: httpx.Client, created: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/batch/jobs/{created.json()['id']}").json()
    return found


def rows(api: httpx.Client, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(one) for one in api.get(f"/files/{file_id}/content").content.splitlines()]


def test_a_job_that_went_well_has_its_failed_rows_in_a_file_of_their_own_and_tells_of_their_errors(
    emulator: Emulator, api: httpx.Client
) -> None:
    emulator.inject(RowFault(custom_ids={"bad"}, status_code=400, message="no such thing"))
    created = create(api, line("good") + line("bad"), metadata={"a": "b"})
    assert (created.json()["status"], created.json()["total_requests"]) == ("QUEUED", 0)
    assert job(api, created)["total_requests"] == 2
    emulator.settle()
    ended = job(api, created)
    counts = [ended[f"{name}_requests"] for name in ("total", "completed", "succeeded", "failed")]
    assert (ended["status"], counts, ended["metadata"]) == ("SUCCESS", [2, 2, 1, 1], {"a": "b"})
    assert ended["errors"] == [{"message": "HTTP Error, status code: 400", "count": 1}]
    [good], [bad] = rows(api, ended["output_file"]), rows(api, ended["error_file"])
    assert (good["custom_id"], good["response"]["body"]["model"]) == ("good", "mistral-x")
    assert (bad["custom_id"], bad["response"]["status_code"], bad["error"]) == ("bad", 400, None)
    assert json.loads(bad["response"]["body"])["message"] == "no such thing"
    assert api.get(f"/files/{ended['error_file']}").json()["expires_at"] is None


@pytest.mark.parametrize(
    "bad",
    [b"{\n", line("r", temperature=2.0), line("r", max_tokens=-5), line("r", messages=None), b'{"custom_id": "r"}\n'],
    ids=["no JSON", "too hot", "a limit below zero", "no messages", "no body"],
)
def test_a_file_with_one_bad_line_is_refused_as_a_whole(api: httpx.Client, bad: bytes) -> None:
    refused = upload(api, line("good") + bad)
    assert (refused.status_code, refused.json()["detail"]) == (422, "Invalid file format.")
    assert api.get("/files").json()["total"] == 0


def test_ids_that_are_missing_or_there_twice_are_echoed(emulator: Emulator, api: httpx.Client) -> None:
    created = create(api, line("twice") + line("twice") + line(None))
    emulator.settle()
    found = rows(api, job(api, created)["output_file"])
    assert sorted(str(row["custom_id"]) for row in found) == ["None", "twice", "twice"]


def test_what_is_canceled_before_it_began_has_no_files_and_what_runs_keeps_what_was_answered(
    emulator: Emulator, api: httpx.Client
) -> None:
    queued, running = create(api, line("a")), create(api, line("a") + line("b"))
    assert api.post(f"/batch/jobs/{queued.json()['id']}/cancel").json()["status"] == "CANCELLED"
    emulator.tick(2)
    asked = api.post(f"/batch/jobs/{running.json()['id']}/cancel")
    assert asked.json()["status"] == "CANCELLATION_REQUESTED"
    emulator.settle()
    assert job(api, queued)["output_file"] is None
    ended = job(api, running)
    assert (ended["status"], ended["succeeded_requests"], ended["error_file"]) == ("CANCELLED", 1, None)
    assert len(rows(api, ended["output_file"])) == 1


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"input_files": ["0" * 36]}, 404),
        ({"timeout_hours": 0}, 422),
        ({"timeout_hours": 168}, 200),
        ({"endpoint": "/v1/responses"}, 422),
        ({"model": ""}, 422),
    ],
    ids=str,
)
def test_a_create_call_is_checked(api: httpx.Client, more: dict[str, Any], status: int) -> None:
    assert create(api, line("r"), **more).status_code == status


def test_a_job_ends_with_its_timeout_and_its_rows_that_ran_are_there() -> None:
    clock = ManualClock()
    with (
        Emulator(clock=clock, work_steps=2) as emulator,
        httpx.Client(base_url=emulator.mistral_base_url, headers={"authorization": f"Bearer {DEFAULT_KEY}"}) as api,
    ):
        created = create(api, line("a") + line("b"), timeout_hours=48)
        emulator.tick(2)
        clock.advance(47 * HOUR)
        assert job(api, created)["status"] == "RUNNING"
        clock.advance(HOUR)
        emulator.settle()
        ended = job(api, created)
        assert (ended["status"], ended["completed_requests"]) == ("TIMEOUT_EXCEEDED", 1)
        assert len(rows(api, ended["output_file"])) == 1


def test_another_keys_files_and_jobs_are_not_there(emulator: Emulator, api: httpx.Client) -> None:
    created = create(api, line("r"))
    stranger = {"authorization": "Bearer sk-other"}
    refused = api.get(f"/batch/jobs/{created.json()['id']}", headers=stranger)
    assert (refused.status_code, refused.json()) == (401, {"detail": "Invalid API Key"})
    assert api.get("/batch/jobs", params={"page": 1, "page_size": 1}).json() == {
        "object": "list",
        "data": [],
        "total": 1,
    }
    assert len(emulator.books.batches) == 1
