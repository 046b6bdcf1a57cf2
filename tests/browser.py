"""Dagster's pages as a person sees them: in a real Chromium, photographed.

`.venv/bin/python -m tests.browser --write` takes the pictures of docs/images, from the data of `python3 -m
example_project`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
_PATIENCE_MS = 120_000
_OVERHANG = """dialog => Math.max(...[...dialog.querySelectorAll('img, table')].map(
    one => one.getBoundingClientRect().right - dialog.getBoundingClientRect().right))"""
_OVERLAPS = """() => [...document.querySelectorAll('td:first-child span')].filter(
    key => key.getBoundingClientRect().right > key.closest('td').getBoundingClientRect().right
).map(key => key.innerText)"""
_WAITING = """query ($sensor: SensorSelector!, $asset: AssetKeyInput!) {
  sensorOrError(sensorSelector: $sensor) { ... on Sensor { sensorState { ticks(limit: 500) { tickId skipReason } } } }
  assetOrError(assetKey: $asset) { ... on Asset { assetObservations(limit: 500) { timestamp } } } }"""


@dataclass(frozen=True)
class Page:
    """A page, the texts that it must show, and the clicks before them."""

    name: str
    path: str
    shows: tuple[str, ...]
    click: str | None = None
    size: tuple[int, int] = (1400, 1000)
    clip: tuple[int, int, int, int] | None = None
    """Left, top, width and height of the picture, if it is a part of the page."""


def pages(
    ask: Callable[..., dict[str, Any]], *, labels: str, partition: str, evaluation: str, location: str
) -> list[Page]:
    """Return pages of a labeled dataset with partitions, and of an evaluation without. `ask` is Dagster's GraphQL."""
    sensor = {"repositoryName": "__repository__", "repositoryLocationName": location, "sensorName": "llm_batch_sensor"}
    known = ask(_WAITING, sensor=sensor, asset={"path": [labels]})
    ticks = known["sensorOrError"]["sensorState"]["ticks"]
    waiting = [tick["tickId"] for tick in ticks if " in flight; " in (tick["skipReason"] or "")]
    observed = [one["timestamp"] for one in known["assetOrError"]["assetObservations"]]
    return [
        Page(
            "asset-graph",
            f"/assets/{evaluation}?view=lineage&lineageScope=upstream&lineageDepth=5",
            ("Latest event", "Passed", "filled"),
            size=(2000, 1300),
            clip=(420, 265, 1410, 1000),
        ),
        Page(
            "labels",
            f"/assets/{labels}?view=partitions&partition={partition}",
            ("llm_batch/cost_usd", "llm_batch/preview", "Show schema"),
            size=(1400, 1100),
        ),
        Page("columns", f"/assets/{labels}", ("llm_prompt_version", "version of the prompt's wording")),
        Page(
            "checks", f"/assets/{labels}?view=checks&checkDetail=coverage", ("blocking", "Passed", "llm_batch/coverage")
        ),
        Page(
            "evaluation",
            f"/assets/{evaluation}?view=events",
            ("accuracy (95 %)",),
            click="[Show Markdown]",
            size=(1400, 1500),
        ),
        Page("evaluation-overview", f"/assets/{evaluation}", ("llm_batch/evaluation", "% right", "llm_batch/report")),
        Page(
            "sensor",
            f"/locations/__repository__@{location}/sensors/llm_batch_sensor",
            ("Polls LLM batches. When the batches of a partition have ended, requests the run that materializes",),
        ),
        Page(
            "tick",
            f"/locations/__repository__@{location}/sensors/llm_batch_sensor?tickId={waiting[len(waiting) // 2]}",
            ("Skip reason:", " in flight; "),
            clip=(140, 104, 1120, 190),
        ),
        Page(
            "progress",
            f"/assets/{labels}?view=events&time={observed[len(observed) // 2]}",
            ("llm_batch/progress_bar", "requests done"),
        ),
    ]


def chromium() -> str | None:
    """Return a Chromium or Chrome of this machine."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


def review_pages(url: str, *, labels: str, evaluation: str, key: str, row: str) -> list[Page]:
    """Return pages of `dagster-llm-batch review`, whose printed address is `url`: it opens once."""
    _, _, token = url.partition("#")
    return [
        Page("review-overview", f"/#{token}", ("right", "Last materialized"), size=(1280, 620)),
        Page("review-evaluation", f"/evaluation/{evaluation}", ("of the labels are right",), size=(1280, 560)),
        Page("review-table", f"/table/{labels}", ("rows.", "succeeded"), size=(1280, 760)),
        Page(
            "review-row",
            f"/row/{evaluation}_mistakes?by={key}&key={row}",
            ("As it was sent", "Gold and labels of"),
            size=(1280, 1000),
        ),
        Page("review-judge", f"/label/{labels}?as={labels}", ("left for you", "Not decidable"), size=(1280, 500)),
    ]


def photograph(url: str, wanted: Sequence[Page], folder: Path) -> list[str]:
    """Write a PNG of each page. Return defects: console errors, text that a dialog cuts off, keys over values."""
    from playwright.sync_api import sync_playwright

    from dagster_llm_batch.evaluation.builder import reduced

    said: list[str] = []
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium refuses root with one
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium(), args=[*_QUIET, *sandbox]) as browser,
    ):
        # Waiting for a page evaluates text in it, which a strict page forbids.
        context = browser.new_context(bypass_csp=True)
        for one in wanted:
            page = context.new_page()
            page.set_viewport_size({"width": one.size[0], "height": one.size[1]})
            page.set_default_timeout(_PATIENCE_MS)
            page.on("pageerror", lambda error, name=one.name, said=said: said.append(f"{name}: {error}"))
            page.goto(url + one.path, wait_until="domcontentloaded")
            if one.click:
                page.get_by_text(one.click).last.click()
            for text in one.shows:
                page.get_by_text(text).first.wait_for()
            page.wait_for_function("!document.body.innerText.includes('Loading…')")
            page.wait_for_timeout(1500)  # the graph and dialogs move into place
            over = [dialog.evaluate(_OVERHANG) for dialog in page.get_by_role("dialog").all()]
            said += [f"{one.name}: {pixels:.0f} pixels of a picture are cut off" for pixels in over if pixels > 0]
            said += [f"{one.name}: {key} runs into its value" for key in page.evaluate(_OVERLAPS)]
            clip = None if one.clip is None else dict(zip(("x", "y", "width", "height"), one.clip, strict=True))
            png = page.screenshot(animations="disabled", clip=clip)
            folder.joinpath(f"{one.name}.png").write_bytes(reduced(png))
            page.close()
    return said


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="into docs/images")
    parser.parse_args()
    from example_project import settings
    from example_project.dagster_dev import dagster

    os.environ["DAGSTER_HOME"] = str(settings.HOME / "dagster_home")
    with dagster(settings.HOME) as running:
        wanted = pages(
            running.query,
            labels="tweet_sentiment",
            partition=settings.EXAMPLE_DAYS[0],
            evaluation="sentiment_eval",
            location="example_project.definitions",
        )
        for wrong in photograph(running.url, wanted, IMAGES):
            print(wrong)
    command = [
        sys.executable,
        "-c",
        "from dagster_llm_batch.cli.main import main; main()",
        "review",
        "-m",
        "example_project.definitions",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        wanted = review_pages(
            url,
            labels="tweet_sentiment",
            evaluation="sentiment_eval",
            key="text_id",
            row=_first_mistake("sentiment_eval"),
        )
        for wrong in photograph(url.partition("/#")[0], wanted, IMAGES):
            print(wrong)
        process.send_signal(signal.SIGINT)


def _first_mistake(evaluation: str) -> str:
    import pyarrow.parquet as pq

    from example_project import settings

    table = pq.read_table(settings.HOME / "tables" / f"{evaluation}_mistakes.parquet")
    return str(table["text_id"][0].as_py())


if __name__ == "__main__":
    main()
