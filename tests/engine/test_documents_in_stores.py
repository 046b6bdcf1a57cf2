"""Documents of rows in Cloud Storage and S3: rows read from the declared folder alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import fsspec
import polars as pl
import pytest
from pdfs import pdf
from upath import UPath
from workspace import Workspace, assert_total, billed, labeling

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, local_gcs, local_s3

BUCKET = "documents-of-rows"
SECRET = "secret-key-of-the-store"


@pytest.fixture(params=["s3", "gs"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the address of a bucket on a real server, which this process reaches by its own settings."""
    server = {"s3": local_s3, "gs": local_gcs}[request.param]
    with server(BUCKET) as url:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": url, "key": "x", "secret": SECRET})
        for name in ("gs", "gcs"):
            monkeypatch.setitem(fsspec.config.conf, name, {"endpoint_url": url, "token": "anon", "project": "p"})
        yield f"{request.param}://{BUCKET}"
    for kind in ("s3", "gcs"):
        fsspec.get_filesystem_class(kind).clear_instance_cache()


def test_rows_read_by_address_what_is_below_the_root_and_nothing_else(
    workspace: Workspace, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = workspace.emulator.anthropic_base_url
    workspace.providers["anthropic"] = AnthropicProvider(api_key=DEFAULT_KEY, base_url=url, timeout_seconds=30.0)
    bucket = UPath(place)
    for name, data in {
        "mine/a.pdf": pdf(2, mark="a"),
        "mine/b.pdf": pdf(1, mark="b"),
        "mine/long.pdf": pdf(101),
        "mine/large.pdf": b"%PDF-1.7" + bytes(24_000_000),
        "theirs/a.pdf": pdf(1, mark="theirs"),
        "mine2/a.pdf": pdf(1, mark="theirs"),
    }.items():
        (bucket / name).write_bytes(data)
    prompt = Prompt("What is it?", documents=["paper"], file_root=f"{place}/mine")
    definition = labeling(model="anthropic/claude-haiku-4-5", prompt=prompt, response=None)
    foreign = [f"{place}/theirs/a.pdf", f"{place}/mine2/a.pdf", f"{place}/mine/../theirs/a.pdf", "gs://other/a.pdf"]
    foreign += [f"{place}/mine//theirs/a.pdf", "file:///etc/passwd", f"s3://KEY:{SECRET}@other/a.pdf"]
    values = [f"{place}/mine/a.pdf", "b.pdf", f"{place}/mine/gone.pdf", f"{place}/mine/long.pdf"]
    values += [f"{place}/mine/large.pdf", *foreign]
    rows = pl.DataFrame({"ticket_id": [f"t{number}" for number in range(len(values))], "paper": values})
    with caplog.at_level(logging.DEBUG, "dagster_llm_batch"):
        status = workspace.run(definition, rows)
    assert (status.submission.requests, status.submission.outcomes) == (2, {"succeeded": 2})
    assert len(billed(workspace)) == 2
    labels, rejects = assert_total(workspace, definition, status.submission.submission_id, len(values))
    assert labels["ticket_id"].to_pylist() == ["t0", "t1"]
    reasons = {row["ticket_id"]: row["llm_reason"] for row in rejects.to_pylist()}
    assert f"got '{place}/mine/gone.pdf', which is no file below file_root" in reasons["t2"]
    assert "got 101 pages; Anthropic takes at most 100" in reasons["t3"]
    assert "is too large: got a document of 24,000,008 bytes" in reasons["t4"]
    for number in range(5, len(values)):
        assert "is not a relative path below file_root, nor an address that begins with it" in reasons[f"t{number}"]
    assert {row["llm_cost_usd"] for row in rejects.to_pylist()} == {0}
    assert SECRET not in "".join([*reasons.values(), caplog.text])


@pytest.mark.parametrize("root", ["memory://papers", "memory://papers/"])
def test_an_address_of_a_file_is_the_same_request_as_its_path(workspace: Workspace, root: str) -> None:
    url = workspace.emulator.anthropic_base_url
    workspace.providers["anthropic"] = AnthropicProvider(api_key=DEFAULT_KEY, base_url=url, timeout_seconds=30.0)
    UPath("memory://papers/a.pdf").write_bytes(pdf(1))
    prompt = Prompt("What is it?", documents=["paper"], file_root=root)
    definition = labeling(model="anthropic/claude-haiku-4-5", prompt=prompt, response=None)
    rows = pl.DataFrame({"ticket_id": ["t0", "t1"], "paper": ["a.pdf", "memory://papers/a.pdf"]})
    assert workspace.run(definition, rows).submission.requests == 1
