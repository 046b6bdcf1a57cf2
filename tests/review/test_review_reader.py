"""The path of a reader of docs/how-to/look-at-rows.md in a real Chromium: find the worst mistakes, judge forty rows."""

from __future__ import annotations

import os
import re
from contextlib import closing, contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_dataset import FORM, LABELS, store_dataset
from served_pages import on_socket

from dagster_llm_batch.metrics import Target, compare
from dagster_llm_batch.metrics.calibration import calibrations_to_arrow
from dagster_llm_batch.metrics.regression import regression_between, regressions_to_arrow
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from tests.browser import chromium

SIZES = {"keys": (1280, 800), "touch": (390, 844)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs a Chromium or Chrome on this machine"),
]


@contextmanager
def opened(assets, folder, how: str = "keys"):
    """Yield the first page in a browser that is used by keys or by touch, the ledger, and errors in the pages."""
    from playwright.sync_api import sync_playwright

    ledger, payloads = Ledger(f"sqlite:///{folder}/ledger.sqlite"), PayloadStore(str(folder / "payloads"))
    waiting = [("tickets", "A batch is in doubt.")]
    deployment = ReviewedDeployment(
        "here",
        ledger,
        payloads,
        "test",
        lambda: assets,
        forms=[FORM],
        judged={"tickets": "gold"},
        waiting=lambda: waiting,
    )
    width, height = SIZES[how]
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with (
        closing(ledger),
        on_socket(review_app(deployment, Door(user_header="X-User"))) as client,
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=chromium(), args=sandbox)) as browser,
    ):
        page = browser.new_context(
            viewport={"width": width, "height": height},
            has_touch=how == "touch",
            is_mobile=how == "touch",
            extra_http_headers={"X-User": "ada"},
        ).new_page()
        page.set_default_timeout(60_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"http://127.0.0.1:{client.port}/")
        yield page, ledger, wrong


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", SIZES)
def test_a_reader_finds_the_worst_class_of_mistakes_in_three_presses_and_judges_forty_rows(tmp_path, how):
    """Judge forty rows in a real browser, with a pause between two taps."""
    assets, sample = store_dataset(tmp_path)

    def press(place) -> None:
        place.tap() if how == "touch" else place.click()

    with opened([*assets, sample], tmp_path, how) as (page, ledger, wrong):
        dataset = page.locator(".dataset").first
        words = dataset.inner_text()
        for fact in (
            "92% right (80% to 98%)",
            "40 gold rows",
            "40 of 42 rows",
            "$0.00",
            "2026-05-04 03:02 UTC",
            "1 task",
        ):
            assert fact in " ".join(words.split()), words
        assert dataset.get_by_role("group", name="Rows by partition").get_by_role("link").count() == 2
        assert dataset.locator(".button").first.inner_text() == "Judge 5 rows"
        # One: the mistakes, the largest group first, as a sentence with an example.
        press(dataset.get_by_text("See 3 mistakes"))
        page.get_by_role("heading", name="What goes wrong").wait_for()
        group = page.locator("section.card").first
        assert "tickets answered billing where people answered bug" in group.inner_text()
        assert "This happened in 3 rows of 40 gold rows" in " ".join(group.inner_text().split())
        assert "Text <i>t27" in group.inner_text()
        # Two: the rows of this group. Three: one of them.
        press(group.get_by_text("3 rows"))
        page.get_by_text("3 of 30 rows.").wait_for()
        if how == "touch":
            press(page.get_by_text("t28", exact=True))
        else:
            page.keyboard.type("jj")
            page.keyboard.press("Enter")
        page.locator("h1", has_text="t28").wait_for()
        compared = page.get_by_role("region", name="Gold and labels").inner_text()
        assert re.search(r"Gold\s+bug\s+human label\s+tickets\s+billing\s+wrong", compared), compared
        assert re.search(r"rules\s+billing\s+wrong\s+Confidence: 25%", compared)
        # The first page, and the button of the labels: all forty rows.
        press(page.locator("header").get_by_text("here"))
        press(page.locator(".dataset").first.get_by_text("See the labels"))
        press(page.get_by_text("Judge these rows as tickets"))
        for number in range(40):
            page.locator("h1", has_text=re.compile(f"^t{number}$")).wait_for()
            page.wait_for_timeout(350)
            if how == "touch":
                page.locator("#judge").get_by_text("bug", exact=True).tap()
            else:
                page.keyboard.press("1")
        page.get_by_text("Nothing is left").wait_for()
        assert "40 rows judged by you" in page.locator("main").inner_text()
        said = [(one.row_key, one.answer) for one in ledger.judgments.read("test", "tickets")]
        assert wrong == []
    assert said == [(f"t{number}", {"topic": "bug"}) for number in range(40)]


@pytest.mark.timeout(600)
def test_an_evaluation_shows_calibration_and_the_change_since_the_accepted_version_in_a_browser(tmp_path):
    assets, _ = store_dataset(tmp_path)
    ids = [f"t{number}" for number in range(40)]
    gold = pa.table({"id": ids, "topic": ["bug"] * 30 + ["billing"] * 10})
    sure = pa.table({"id": ids, "topic": LABELS, "sure": [0.95] * 30 + [0.55] * 10})
    target = [Target("topic", confidence_column="sure")]
    now = compare(gold, {"tickets": sure}, key="id", targets=target)
    accepted = sure.set_column(1, "topic", pa.array(["billing"] * 2 + ["bug"] * 28 + ["billing"] * 10))
    before = compare(gold, {"tickets": accepted}, key="id", targets=target)
    more = {
        "quality_calibration": calibrations_to_arrow(now.calibrations),
        "quality_versions": regressions_to_arrow([regression_between(before.joined[0], now.joined[0])]),
    }
    for name, table in more.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    added = [StoredAsset(name, role="evaluation", files={"": str(tmp_path / f"{name}.parquet")}) for name in more]
    with opened([*assets, *added], tmp_path) as (page, _, wrong):
        page.locator(".dataset").first.get_by_text("quality").click()
        card = page.locator("section.card", has_text="tickets: topic")
        card.wait_for()
        assert "92% of the labels are right, and between 80% and 98%" in card.inner_text()
        changed = "Compared with the accepted version, 2 rows became right and 3 rows became wrong, of 40 rows."
        assert changed in card.inner_text()
        confidence = card.get_by_role("region", name="Confidence of tickets").inner_text()
        assert re.search(r"50% to 60%\s+10\s+55%\s+100%\s+90% to 100%\s+30\s+95%\s+90%", confidence), confidence
        matrix = card.get_by_role("region", name="Gold rows by label of tickets")
        matrix.get_by_role("link", name="3").click()
        page.get_by_text("3 of 30 rows.").wait_for()
        assert wrong == []


@pytest.mark.timeout(600)
def test_tables_with_odd_columns_changed_types_and_damaged_files_open_in_a_browser(tmp_path):
    names = ["filename", "file_row_number", "llm_review_key", "*"]
    folder = tmp_path / "days [a-z]*?"
    folder.mkdir()
    for day, value in (("d1", [1, 2]), ("d2", ["one", "two"])):
        rows = {"id": [f"{day}a", f"{day}b"], "value": value, **{name: [f"{name} of {day}"] * 2 for name in names}}
        pq.write_table(pa.table(rows), folder / f"{day}.parquet")
    (folder / "d3.parquet").write_bytes((folder / "d1.parquet").read_bytes()[:300])
    files = {day: str(folder / f"{day}.parquet") for day in ("d1", "d2", "d3")}
    odd = StoredAsset("odd", "tickets", "labels", "id", files)
    broken = StoredAsset("broken", role="evaluation", files={"": files["d3"]})
    with opened([odd, broken], tmp_path) as (page, _, wrong):
        page.get_by_role("listitem").get_by_text("odd").click()
        page.locator("tr[data-row]").first.wait_for()
        assert page.locator("tr[data-row]").count() == 4
        told = page.locator(".rows p.quiet").first.inner_text()
        assert told.startswith("4 rows. 1 of 3 files cannot be read, and is left out: ")
        shown = page.locator("table").inner_text()
        assert all(f"{name} of {day}" in shown for name in names for day in ("d1", "d2"))
        page.get_by_role("link", name="d2a").click()
        page.locator("h1", has_text="d2a").wait_for()
        assert "* of d2" in page.locator("main").inner_text()
        page.goto(page.url.partition("/row")[0] + "/table/broken")
        page.get_by_text("The files of this table cannot be read: ").wait_for()
        assert wrong == []
