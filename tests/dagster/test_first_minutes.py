"""README and docs/start.md, followed like a new user: their files in an empty folder, their commands in order.

The package is the built wheel in a new environment. The differences from the page: pip is uv with pinned versions, the
two ports are free ones, and Dagster shows no welcome dialog.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster_dev import DagsterDev, free_port, marked, process
from markdown_it import MarkdownIt
from published_package import CONSTRAINTS, ROOT, SHARE, built, environment, uv
from test_live import Reader

from tests import browser

MISTAKES = browser.Page(
    "mistakes",
    "/assets/quality_mistakes?view=events",
    ("llm_batch/rows_mistaken", "Great service, thank you!"),
    size=(1500, 760),
    # The path of the table is below, and differs each time.
    clip=(560, 255, 900, 272),
)
"""The picture of the README. `DLB_WRITE_IMAGES=1` puts it into docs/images, next to pictures of the example."""
README, START = ROOT / "README.md", ROOT / "docs" / "start.md"
SHIMS = """
pip() {{
  {uv} pip --quiet --no-config $1 --find-links {dist} --constraint {pins} "${{@:2}}"
  {share} "$VIRTUAL_ENV"
}}
dagster() {{ if [ "$1" = dev ]; then command dagster "$@" -h 127.0.0.1 -p {port}; else command dagster "$@"; fi; }}
"""


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return language, title and text of each code block."""
    fences = [token for token in MarkdownIt().parse(page.read_text("utf-8")) if token.type == "fence"]
    return [
        (token.info.split()[0], token.info.partition('title="')[2].rstrip('"'), token.content)
        for token in fences
        if token.info
    ]


def commands(page: Path) -> list[str]:
    return [text for language, _, text in blocks(page) if language == "sh"]


def test_the_readmes_program_is_that_of_the_page_that_goes_on_from_it():
    [[program], [same]] = [
        [text for language, _, text in blocks(page) if language == "python"] for page in (README, START)
    ]
    assert program == same


def test_the_readme_has_at_most_120_lines_and_its_program_about_forty():
    assert len(README.read_text("utf-8").splitlines()) <= 120
    [program] = [text for language, _, text in blocks(README) if language == "python"]
    assert len([line for line in program.splitlines() if line.strip()]) <= 40


@contextlib.contextmanager
def shell(page: Path, tmp_path: Path, script: list[str]) -> Iterator[DagsterDev]:
    """Run the script in a folder that holds only the files of the page; yield its Dagster."""
    built(tmp_path / "dist", "--wheel")
    folder, log, port, emulated = tmp_path / "project", tmp_path / "shell.log", free_port(), str(free_port())
    folder.mkdir()
    for _, title, text in blocks(page):
        if title:
            folder.joinpath(title).write_text(text, encoding="utf-8")
    shims = SHIMS.format(uv=uv(), dist=tmp_path / "dist", pins=CONSTRAINTS, share=SHARE, port=port)
    text = "\n".join(["set -eumx", shims, *script])
    text = text.replace("./dagster-llm-batch[", "dagster-llm-batch[").replace("8700", emulated)
    text = text.replace("touch home/dagster.yaml", f"cp {tmp_path}/ignored/dagster.yaml home/")  # no welcome dialog
    env = environment(tmp_path / "ignored")
    del env["DAGSTER_HOME"]
    with process(str(tmp_path), ["/bin/bash", "-c", text], env, log, cwd=folder):
        running = DagsterDev(f"http://127.0.0.1:{port}", log)
        running.until("dagster dev", running.is_up)
        yield running


def land(running: DagsterDev, folder: Path, select: list[str]) -> Reader:
    seen = Reader(running)
    seen.materialize(*select)
    for asset in ("moods", "quality", "quality_mistakes"):
        running.until(asset, lambda asset=asset: seen.landings(asset))
    assert seen.failed_runs() == []
    submitted, landed = (seen.materializations(name)[None] for name in ("moods_batch", "moods"))
    assert submitted["llm_batch/estimated_cost_usd"] > 0
    assert 0 < landed["llm_batch/cost_usd"] < 0.01
    assert folder.joinpath("tables", "quality_mistakes").is_dir()
    return seen


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_readme_goes_from_an_empty_folder_to_wrong_rows_by_materialize_all(tmp_path):
    """Start a real Dagster in a new environment, as the reader of the page does."""
    _two_commands, install, run = commands(README)
    with shell(README, tmp_path, [install, run]) as running:
        everything = ["comments", "gold", "moods", "moods_batch", "moods_rejects"]
        everything += ["quality", "quality_mistakes", "quality_failures", "quality_per_class"]
        land(running, tmp_path / "project", everything)
    assert marked(str(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_start_goes_to_labels_and_then_to_the_plan_of_a_real_account(tmp_path):
    """Start a real Dagster in a new environment, as the reader of the page does."""
    install, plan, dev, look, read, real = commands(START)
    assert dev.strip() == "dagster dev -f labels.py"
    waits = "while [ ! -e landed ]; do sleep 0.2; done"
    then = ["dagster dev -f labels.py > dev.log 2>&1 &", waits, look, read, real, "touch done"]
    folder = tmp_path / "project"
    with shell(START, tmp_path, [install, plan, *then]) as running:
        land(running, folder, ["moods_batch"])
        if browser.chromium():
            images = browser.IMAGES if os.environ.get("DLB_WRITE_IMAGES") == "1" else tmp_path
            assert browser.photograph(running.url, [MISTAKES], images) == []
        folder.joinpath("landed").touch()
        running.until("the rest of the page", folder.joinpath("done").exists)
        said = tmp_path.joinpath("shell.log").read_text()
        assert '"moods_reason"' in folder.joinpath("mistakes.csv").read_text()
        assert folder.joinpath("moods.csv").read_text().count("Great service, thank you!") == 1
        assert "Warning: " not in said
        assert "1 of 8 rows is empty and is not sent." in said
        # The emulator's answers do not count as answers of a real account.
        assert len(re.findall(r"of these reused +0\b", said)) == said.count("to send") == 2
    assert marked(str(tmp_path)) == []
