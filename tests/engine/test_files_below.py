"""Files below a root, for rows that nobody trusts: paths that lead out, and files that cannot be read whole."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pdfs import pdf
from upath import UPath
from workspace import labeling

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_files import RowFiles, WrongPathError
from dagster_llm_batch.files.prompt_files import FilesBelow
from dagster_llm_batch.files.row_renderer import RowRenderer
from dagster_llm_batch.types import DocumentRules

SECRET = b"SECRET"
ROOTS = ["", "file://", "local://", "simplecache::file://", "simplecache::"]
ESCAPES = [
    "link",
    "inner",
    "folder/secret",
    "../secret",
    "a/../../secret",
    "{out}/secret",
    "file://{out}/secret",
    "file://{out}/root/../secret",
    "file://{out}/root//secret",
    "file://{out}/root/link",
    "file://{out}/rooted/secret",
    "file://{out}/root/file://{out}/secret",
    "a\\secret",
    "a/%2e%2e/%2e%2e/secret",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(SECRET)
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "inner").symlink_to(root / "link")
    (root / "to_file").symlink_to(root / "a" / "file")
    return root


@pytest.mark.parametrize("argument", ["image_root", "file_root"])
@pytest.mark.parametrize("scheme", ROOTS)
def test_no_path_leads_out_of_a_local_root(root: Path, scheme: str, argument: str) -> None:
    load = FilesBelow(f"{scheme}{root}", argument)
    assert load("a/file") == load("to_file") == b"inside"
    if "://" in scheme:
        assert load(f"{scheme.rpartition('::')[2]}{root}/a/file") == b"inside"
    for path in ESCAPES:
        with pytest.raises((ValueError, FileNotFoundError)):
            load(path.format(out=root.parent))


def test_a_root_that_is_a_link_itself_is_read(root: Path) -> None:
    (root.parent / "other").symlink_to(root)
    assert FilesBelow(f"file://{root.parent}/other", "file_root")("a/file") == b"inside"


@pytest.mark.parametrize("argument", ["image_root", "file_root"])
def test_a_pipe_is_refused_and_not_waited_for(root: Path, argument: str) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(WrongPathError, match=f"is no regular file below {argument}"):
        FilesBelow(str(root), argument)("pipe")


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_a_file_over_the_limits_is_not_read(root: Path, scheme: str) -> None:
    place = UPath(f"{scheme}://{root}")
    place.mkdir(parents=True, exist_ok=True)
    (place / "six").write_bytes(b"inside")
    (place / "seven").write_bytes(b"outside")
    load = FilesBelow(str(place), "file_root", [DocumentRules("A vendor", (), most_bytes=9, most_total_bytes=6)])
    assert load("six") == b"inside"
    with pytest.raises(WrongPathError, match="too large: got a document of 7 bytes; A vendor takes at most 6"):
        load("seven")


@pytest.mark.parametrize(("file_root", "read_first"), [("folder", 1), (None, 8)])
def test_documents_by_path_are_in_memory_one_by_one(file_root: str | None, read_first: int) -> None:
    """A document in the column is in memory already."""
    rows = pa.record_batch({"ticket_id": list(range(9)), "paper": pa.array([pdf()] * 9)})
    prompt = Prompt("x", documents=["paper"], file_root=file_root)
    renderer = RowRenderer(labeling(prompt=prompt, response=None), rows.schema, RowFiles())
    _, requests = next(iter(renderer.requests(rows, list(range(9)))))
    assert len(requests) == read_first
