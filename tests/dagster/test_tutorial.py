"""The tutorial, word for word: its commands in a shell, with the built wheel, in a new environment."""

import csv
import re
import shlex
import subprocess
import sys
import zipfile

import pytest
from dagster_dev import DagsterDev, free_port, marked, process
from markdown_it import MarkdownIt
from published_package import CONSTRAINTS, ROOT, SHARE, built, environment, uv
from test_live import Reader

PAGE = ROOT / "docs" / "tutorial.md"
PIP = """pip() {{
  {uv} pip --quiet --no-config $1 --find-links {dist} --constraint {pins} "${{@:2}}"
  {share} "$VIRTUAL_ENV"
}}"""
"""Stands in for pip, with the same words, pinned versions and this package from `dist`, and is much faster."""
START_SENSOR = """mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename } }"""
RELOAD = """mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }"""


def blocks(kind: str) -> list[tuple[str, str]]:
    """Return the info string and the text of each block of this language."""
    tokens = MarkdownIt().parse(PAGE.read_text("utf-8"))
    fences = [token for token in tokens if token.type == "fence" and token.info.split()[0] == kind]
    return [(token.info, token.content) for token in fences]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_tutorial_works_word_by_word_with_the_built_wheel_in_a_new_environment(tmp_path):
    """Build the wheel, install an environment and start Dagster: minutes of a reader, most of them waits."""
    built(tmp_path / "dist", "--wheel")
    set_up, send, land, dev = (text for _, text in blocks("sh"))
    files = {found[1]: text for info, text in blocks("python") if (found := re.search(r'title="(.+?)"', info))}
    for name, text in files.items():
        tmp_path.joinpath(name).write_text(text, encoding="utf-8")
    pip = PIP.format(uv=uv(), dist=tmp_path / "dist", pins=CONSTRAINTS, share=SHARE)
    copied = " ".join(shlex.quote(str(tmp_path / name)) for name in files)
    quiet = "cp ../home/dagster.yaml home/"
    script = "\n".join(["set -eux", pip, set_up, f"cp {copied} .", quiet, send, land, "env > ../environment"])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # For example SupersessionWarning and BetaWarning, which Dagster shows unchanged.
    assert re.findall(r"\w+Warning: .*", done.stdout + done.stderr) == []
    shop = tmp_path / "shop"
    rows = csv.DictReader(shop.joinpath("labels.csv").read_text().splitlines())
    topics = {"t1": "billing", "t2": "bug", "t3": "how_to", "t4": "how_to"}
    assert {row["ticket_id"]: row["topic"] for row in rows} == topics

    [(_, change)] = blocks("diff")
    definitions, log, port = shop / "shop.py", tmp_path / "dagster.log", free_port()
    env = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line)
    command = [str(shop / ".venv" / "bin" / "python"), str(shop / ".venv" / "bin" / "dagster"), *shlex.split(dev)[1:]]
    with process(str(tmp_path), [*command, "-h", "127.0.0.1", "-p", str(port)], env, log, cwd=shop):
        running = DagsterDev(f"http://127.0.0.1:{port}", log)
        running.until("dagster dev", running.is_up)
        seen = Reader(running)
        running.ask(START_SENSOR, selector={**seen.place, "sensorName": "default_automation_condition_sensor"})
        after, ticket = (line[1:] for line in change.splitlines(keepends=True))
        text = definitions.read_text()
        assert after in text
        definitions.write_text(text.replace(after, after + ticket))
        running.ask(RELOAD, name=seen.place["repositoryLocationName"])
        before = len(seen.landings("ticket_eval"))
        seen.materialize("tickets")
        running.until("the tickets", lambda: len(seen.landings("tickets")) >= 2)
        seen.materialize("ticket_labels_batch")
        running.until("the labels", lambda: len(seen.landings("ticket_labels")) >= 2)
        assert seen.materializations("ticket_labels_batch")[None]["llm_batch/requests_reused"] == 4
        assert seen.materializations("ticket_labels")[None]["llm_batch/rows_succeeded"] == 5
        running.until("the evaluation", lambda: len(seen.landings("ticket_eval")) > before)
        assert seen.failed_runs() == []
    assert marked(str(tmp_path)) == []


@pytest.mark.slow
def test_wheel_and_sdist_build_clean_carry_types_and_nothing_of_the_tests(tmp_path):
    files = built(tmp_path)
    assert [one.suffix for one in files] == [".whl", ".gz"] or [one.suffix for one in files] == [".gz", ".whl"]
    wheel = next(one for one in files if one.suffix == ".whl")
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    assert {"dagster_llm_batch/py.typed", "dagster_llm_batch/components/templates/prompt.md.j2"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dagster_llm_batch"}
    [metadata] = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    assert "## Label a CSV" in metadata
    # An index shows the page, but has no files for relative links.
    assert re.findall(r"\]\((?!https?:).*", metadata) == []
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "WARNING" not in checked.stdout
