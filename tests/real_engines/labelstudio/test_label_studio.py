"""Rows go to a real Label Studio and come back as judgments. `python3 -m tests labelstudio` installs and runs it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.task_answers import read_answers, take_answers
from dagster_llm_batch.review.tasks import Task, write_tasks
from dagster_llm_batch.storage.ledger import Ledger

pytestmark = pytest.mark.timeout(900)

PROGRAM = Path(__file__).parents[3] / ".venv-labelstudio" / "bin" / "label-studio"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
DRAWN = {"sample_weight": 2.5, "sample_round": 1}
HOSTILE = '<script>alert("x")</script> $llm_row \u202e =1+1'


class Place(BaseModel):
    city: str


class Ticket(BaseModel):
    topic: Literal["billing", "bug", "<b>&\"'"]
    urgent: bool
    score: int | None = None
    place: Place
    tags: list[Literal["a", "b"]] = []
    words: list[str] = []


FORM = LabelForm("tickets", "id", Ticket.model_json_schema())
SAID = {
    "topic": "<b>&\"'",
    "urgent": True,
    "score": 3,
    "place": {"city": HOSTILE},
    "tags": ["a", "b"],
    "words": ["x", "y"],
}
KEYS = ["00123", "2026-01-02", HOSTILE, "é"]


class Studio:
    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        head = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, head, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    assert PROGRAM.exists(), "Label Studio is not installed: `python3 -m tests labelstudio` does it."
    folder = tmp_path_factory.mktemp("studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    person = ["--username", "ada@example.com", "--password", "no-secret-here", "--user-token", TOKEN]
    environment = {
        "PATH": f"{PROGRAM.parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "False",
        "LATEST_VERSION_CHECK": "False",
        "SENTRY_DSN": "",
    }
    command = [PROGRAM, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port), *person]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    running = Studio(f"http://127.0.0.1:{port}")
    try:
        while True:
            assert server.poll() is None, (folder / "log").read_text()[-5_000:]
            try:
                running.ask("GET", "/api/projects")
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        yield running
    finally:
        server.terminate()
        server.wait(60)


def test_rows_come_back_from_label_studio_as_they_went_with_who_when_and_weight(studio: Studio, tmp_path: Path) -> None:
    rows = [
        Task("tickets", "2026-01-01", key, {"body": HOSTILE}, HOSTILE, DRAWN, SAID if key != "é" else None, "m")
        for key in KEYS
    ]
    path, config = write_tasks(rows, FORM, tmp_path / "tasks.json", "label-studio")
    project = studio.ask("POST", "/api/projects", {"title": "Tickets", "label_config": config.read_text("utf-8")})
    counts = studio.ask("POST", f"/api/projects/{project['id']}/import", json.loads(path.read_text("utf-8")))
    assert (counts["task_count"], counts["prediction_count"]) == (4, 3)
    tasks = studio.ask("GET", f"/api/tasks?project={project['id']}&fields=all")["tasks"]
    assert [task["data"]["id"] for task in tasks] == KEYS
    assert {task["data"]["llm_text"] for task in tasks} == {HOSTILE}

    undecidable = [
        {
            "from_name": "llm_undecidable",
            "to_name": "llm_text",
            "type": "choices",
            "value": {"choices": ["Not decidable"]},
        },
        {"from_name": "llm_comment", "to_name": "llm_text", "type": "textarea", "value": {"text": ["Why?"]}},
    ]
    before = datetime.now(UTC)
    for task in tasks:
        # A person who accepts a prediction sends its result.
        result = task["predictions"][0]["result"] if task["predictions"] else undecidable
        skipped = {"was_cancelled": True} if task["data"]["id"] == "00123" else {}
        studio.ask("POST", f"/api/tasks/{task['id']}/annotations/", {"result": result, "lead_time": 3.5, **skipped})
    exported = tmp_path / "exported.json"
    found = studio.ask("GET", f"/api/projects/{project['id']}/export?exportType=JSON&download_all_tasks=true")
    exported.write_text(json.dumps(found), "utf-8")

    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    for expected in (4, 0):
        answers = read_answers(exported, FORM, "label-studio")
        taken = take_answers(answers, FORM, "test", ledger.judgments.read("test", "tickets"), datetime.now(UTC))
        assert (len(taken.judgments), taken.known) == (expected, 4 - expected)
        ledger.judgments.add_all(taken.judgments)
    said = {one.row_key: one for one in ledger.judgments.read("test", "tickets")}
    ledger.close()
    assert {key: (one.kind, one.answer, one.comment) for key, one in said.items()} == {
        "00123": ("skip", None, None),
        "2026-01-02": ("label", SAID, None),
        HOSTILE: ("label", SAID, None),
        "é": ("undecidable", None, "Why?"),
    }
    assert {(one.partition, one.annotator, one.seconds) for one in said.values()} == {
        ("2026-01-01", "label-studio:1", 3.5)
    }
    assert all(one.sample == DRAWN for one in said.values())
    assert all(before <= one.at <= datetime.now(UTC) for one in said.values())
