"""A row whose image cannot be read is a reject with its reason. It is not sent, and costs nothing; other rows go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from comparison import PIXEL, Pickled, assert_same_plan, stored
from workspace import Workspace, assert_total, billed, labeling

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

VENDORS = ("openai/gpt-4o", "anthropic/claude-haiku-4-5")
GONE = "the image in column 'picture' cannot be read: got 'gone.png', which is no file below image_root"


@pytest.fixture
def workspace(workspace: Workspace) -> Workspace:
    url = workspace.emulator.anthropic_base_url
    workspace.providers["anthropic"] = AnthropicProvider(api_key=DEFAULT_KEY, base_url=url, timeout_seconds=5.0)
    return workspace


@contextmanager
def served(folder: Path, status: int | None = None) -> Iterator[str]:
    """Serve the files of a folder over HTTP, or the `status` for all requests; yield the server's address."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def send_head(self) -> Any:
            if status is None:
                return super().send_head()
            self.send_error(status)
            return None

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(PIXEL + name.encode())
    (folder / "text.png").write_bytes(b"no image")
    return folder


def seeing(root: object, model: str = VENDORS[0], **changes: Any) -> Any:
    prompt = Prompt("What is it?", images=["picture"], image_root=None if root is None else str(root))
    return labeling(model=model, prompt=prompt, response=None, **changes)


def pictures(*paths: object) -> pl.DataFrame:
    return pl.DataFrame({"ticket_id": [f"t{number}" for number in range(len(paths))], "picture": [*paths]})


@pytest.mark.parametrize("model", VENDORS)
@pytest.mark.parametrize("kind", ["path", "address"])
def test_a_missing_image_rejects_its_row_and_no_other(
    workspace: Workspace, images: Path, model: str, kind: str
) -> None:
    with served(images) as address:
        definition = seeing(images if kind == "path" else address, model)
        rows = pictures("a.png", "gone.png", "b.png", "a.png", "text.png", "gone.png", None)
        preview = workspace.engine().preview(definition, rows)
        assert (preview.unreadable.rows, preview.skipped, preview.requests, preview.to_send) == (3, 1, 2, 2)
        assert preview.unreadable.reason.startswith(GONE)
        submission = workspace.run(definition, rows).submission
    assert (submission.rows, submission.requests, submission.outcomes) == (7, 2, {"succeeded": 2})
    assert len(billed(workspace)) == 2
    assert workspace.engine().left_out_rows(submission) == (1, 0, 3)
    labels, rejects = assert_total(workspace, definition, submission.submission_id, 7)
    assert labels["ticket_id"].to_pylist() == ["t0", "t2", "t3"]
    found = {row["ticket_id"]: row for row in rejects.to_pylist()}
    assert {key: row["llm_outcome"] for key, row in found.items()} == {
        "t1": "errored",
        "t4": "errored",
        "t5": "errored",
        "t6": "skipped",
    }
    assert found["t1"]["llm_reason"].startswith(GONE)
    assert found["t5"]["llm_reason"] == found["t1"]["llm_reason"]
    assert "the row was not sent, and cost nothing" in found["t1"]["llm_reason"]
    assert "got bytes that start with b'no image'; allowed is a PNG" in found["t4"]["llm_reason"]
    assert rejects["llm_request_id"].null_count == len(rejects)
    assert rejects["llm_cost_usd"].to_pylist() == [Decimal(0)] * 4
    assert sum(labels["llm_cost_usd"].to_pylist()) == submission.cost_usd


@pytest.mark.parametrize("model", VENDORS)
def test_the_row_alone_is_asked_when_its_image_is_there(workspace: Workspace, images: Path, model: str) -> None:
    definition, rows = seeing(images, model), pictures("a.png", "gone.png", "b.png")
    first = workspace.run(definition, rows).submission
    assert workspace.engine().plan(definition, rows).submission_id == first.submission_id
    (images / "gone.png").write_bytes(PIXEL + b"came later")
    second = workspace.run(definition, rows)
    assert (second.submission.reused, sum(shard.requests for shard in second.shards)) == (2, 1)
    labels, rejects = assert_total(workspace, definition, second.submission.submission_id, 3)
    assert (len(labels), len(rejects), len(billed(workspace))) == (3, 0, 3)
    # the image goes again, and with it the row's label
    (images / "gone.png").unlink()
    third = workspace.run(definition, rows)
    labels, rejects = assert_total(workspace, definition, third.submission.submission_id, 3)
    assert (labels["ticket_id"].to_pylist(), len(billed(workspace))) == (["t0", "t2"], 3)


@pytest.mark.parametrize("kind", ["path", "address", "bytes", "no root"])
def test_without_any_image_a_partition_fails_before_anything_is_sent(
    workspace: Workspace, images: Path, kind: str
) -> None:
    with served(images) as address:
        root = {"path": images, "address": address}.get(kind)
        rows = pictures(b"one", None, b"two") if kind == "bytes" else pictures("gone.png", None, "gone.png")
        for call in (workspace.engine().plan, workspace.engine().preview):
            with pytest.raises(
                InputError, match=r"All rows were left out: 2 of 3 rows .* The first: the image in column"
            ):
                call(seeing(root), rows)
    assert (workspace.files(), billed(workspace)) == (set(), [])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_store_that_does_not_answer_is_no_missing_image(workspace: Workspace, images: Path, status: int) -> None:
    with served(images, status) as address, pytest.raises(InputError, match="Plan it again when the store answers"):
        workspace.engine().plan(seeing(address), pictures("a.png"))
    assert workspace.files() == set()


def test_bytes_that_are_no_image_are_found_again_among_rows_that_are_known(workspace: Workspace) -> None:
    definition = seeing(None)
    rows = pictures(*(b"none" if number in (3, 70) else PIXEL + b"%d" % number for number in range(100)))
    workspace.run(definition, rows)
    more = pl.concat([rows, pictures(*(PIXEL + b"%d" % number for number in range(101)))[100:]])
    second = workspace.run(definition, more)
    assert (second.submission.reused, second.submission.requests) == (98, 99)
    _, rejects = assert_total(workspace, definition, second.submission.submission_id, 101)
    assert rejects["ticket_id"].to_pylist() == ["t3", "t70"]
    assert all("got bytes that start with b'none'" in reason for reason in rejects["llm_reason"].to_pylist())


def test_the_first_missing_image_may_come_after_rows_are_written(workspace: Workspace, images: Path) -> None:
    definition = seeing(images, keep=["note"])
    frames = [
        pictures("a.png").with_columns(ticket_id=pl.lit("t-long"), note=pl.lit("n" * (3 << 20))),
        pictures("b.png", "gone.png").with_columns(note=pl.lit("short")),
        pictures("a.png").with_columns(ticket_id=pl.lit("t-last"), note=pl.lit("m" * (3 << 20))),
    ]
    submission = workspace.run(definition, iter([frame.to_arrow() for frame in frames])).submission
    assert workspace.engine().left_out_rows(submission) == (0, 0, 1)
    labels, rejects = assert_total(workspace, definition, submission.submission_id, 4)
    assert labels["ticket_id"].to_pylist() == ["t-long", "t0", "t-last"]
    assert (rejects["ticket_id"].to_pylist(), rejects["note"].to_pylist()) == (["t1"], ["short"])
    assert rejects["llm_reason"][0].as_py().startswith(GONE)


def test_labels_in_parts_and_of_workers_have_the_reasons_too(
    tmp_path: Path, workspace: Workspace, images: Path
) -> None:
    for number in range(30):
        (images / f"{number}.png").write_bytes(PIXEL + b"%d" % number)
    rows = pictures(*(f"{number}.png" for number in range(40)))
    definition, spread = seeing(images), seeing(images, workers=Pickled())
    plans = []
    for place, one in (("here", definition), ("there", spread)):
        own = Workspace(tmp_path / place, workspace.emulator)
        plans.append(stored(own, own.engine().plan(one, rows)))
    assert_same_plan(*plans)
    workspace.bounds = {"part_rows": 10}
    submission = workspace.run(spread, rows).submission
    assert workspace.engine().left_out_rows(submission) == (0, 0, 10)
    parts = list(workspace.engine().label_batches(definition, submission.submission_id))
    rejects = pa.concat_tables([part.rejects for part in parts])
    assert len(parts) > 1
    assert set(rejects["ticket_id"].to_pylist()) == {f"t{number}" for number in range(30, 40)}
    assert len(set(rejects["llm_reason"].to_pylist())) == 10
    assert sum(len(part.labels) for part in parts) == 30


def test_an_erasure_keeps_the_reasons_of_other_rows(workspace: Workspace, images: Path) -> None:
    definition = seeing(images)
    submission = workspace.run(definition, pictures("a.png", "gone.png", "b.png", "gone.png")).submission
    eraser = workspace.engine().eraser
    eraser.add_tombstones("ticket_labels", ["t0", "t1"], None)
    eraser.erase("ticket_labels")
    assert workspace.engine().left_out_rows(submission) == (0, 0, 1)
    labeled = workspace.engine().labels(definition, submission.submission_id)
    assert labeled.labels["ticket_id"].to_pylist() == ["t2"]
    assert [row["ticket_id"] for row in labeled.rejects.to_pylist()] == ["t3"]
    assert labeled.rejects["llm_reason"][0].as_py().startswith(GONE)
