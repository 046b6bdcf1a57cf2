"""Files below a root, for rows that nobody trusts: paths that lead out, and files that cannot be read whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagster_llm_batch.files.prompt_files import FilesBelow

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
    for path in ESCAPES:
        with pytest.raises((ValueError, FileNotFoundError)):
            load(path.format(out=root.parent))


def test_a_root_that_is_a_link_itself_is_read(root: Path) -> None:
    (root.parent / "other").symlink_to(root)
    assert FilesBelow(f"file://{root.parent}/other", "file_root")("a/file") == b"inside"
