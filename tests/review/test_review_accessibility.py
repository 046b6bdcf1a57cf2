"""Axe finds no barrier on any page: WCAG 2.2, level AA, and good practice."""

from __future__ import annotations

import os
from contextlib import closing
from urllib.parse import urlencode

import pytest
from served_dataset import FORM, store_dataset
from served_pages import on_socket

from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from tests.browser import chromium

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PAGES = {
    "first page": "/",
    "evaluation": "/evaluation/quality",
    "groups of mistakes": "/failures/quality_failures",
    "mistake": "/row/quality_mistakes?by=id&key=t28",
    "row": "/row/shop/tickets?by=id&key=t0&in=d1",
    "labels under a filter": "/table/shop/tickets?where=topic:is:bug",
    "sample": "/table/to_judge",
    "judging": "/label/to_judge?as=tickets",
    "nothing left to judge": "/label/to_judge?as=tickets&q=none",
    "wrong address": "/table/none",
}
SIZES = [(1280, 800), (390, 844)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs a Chromium or Chrome on this machine"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_no_page_has_a_barrier_that_axe_knows(tmp_path, size, colors):
    """Open ten pages in a real browser, and run all rules on each: half a minute."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    assets, sample = store_dataset(tmp_path)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    deployment = ReviewedDeployment(
        "here",
        ledger,
        PayloadStore(str(tmp_path / "payloads")),
        "test",
        lambda: [*assets, sample],
        forms=[FORM],
        judged=["tickets"],
        waiting=lambda: [("tickets", "A batch is in doubt.")],
    )
    is_small = size[0] < 800
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    found = []
    with (
        closing(ledger),
        on_socket(review_app(deployment, Door(user_header="X-User"))) as client,
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=chromium(), args=sandbox)) as browser,
    ):
        form = {"form_id": "f", "partition": "", "row_key": "t0", "kind": "label", "answer_topic": '"bug"'}
        own = {"Origin": f"http://127.0.0.1:{client.port}", "Content_Type": "application/x-www-form-urlencoded"}
        assert client.ask("POST", PAGES["judging"], urlencode(form), X_User="ada", **own).status == 303
        page = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=colors,
            has_touch=is_small,
            is_mobile=is_small,
            extra_http_headers={"X-User": "ada"},
        ).new_page()
        for name, path in PAGES.items():
            page.goto(f"http://127.0.0.1:{client.port}{path}")
            page.locator("h1").first.wait_for()
            rules = {"resultTypes": ["violations"], "runOnly": RULES}
            violations = Axe().run(page, options=rules).response["violations"]
            found += [(name, each["id"], [node["html"] for node in each["nodes"]]) for each in violations]
            if page.evaluate("document.documentElement.scrollWidth") > size[0]:
                found.append((name, "wider than the screen", []))
    assert found == []
