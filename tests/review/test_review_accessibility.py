"""Axe finds no barrier on any page: WCAG 2.2, level AA, and good practice."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_dataset import FORM, PNG, store_dataset
from served_pages import on_socket

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.testing.emulator import Emulator
from tests.browser import chromium
from tests.engine.workspace import Workspace, labeling
from tests.pdfs import pdf

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PAGES = {
    "first page": "/",
    "evaluation": "/evaluation/quality",
    "groups of mistakes": "/failures/quality_failures",
    "mistake": "/row/quality_mistakes?by=id&key=t28",
    "row": "/row/shop/tickets?by=id&key=t0&in=d1",
    "row with quotes": "/row/quoted?by=id&key=t0",
    "labels": "/table/shop/tickets",
    "mistakes": "/table/quality_mistakes",
    "evaluation as a table": "/table/quality",
    "labels under a filter": "/table/shop/tickets?where=topic:is:bug",
    "sample": "/table/to_judge",
    "judging": "/label/to_judge?as=tickets",
    "judging with quotes, an image and a document": "/label/quoted?as=ticket_labels",
    "second opinion": "/label/to_judge?as=tickets&second=1",
    "prompt with a note": "/prompts/ticket_labels",
    "nothing left to judge": "/label/to_judge?as=tickets&q=none",
    "wrong address": "/table/none",
}
STRANGER = "/table/shop/tickets"
"""The address that a browser without a session opens."""
SIZES = [(1280, 800), (390, 844)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs a Chromium or Chrome on this machine"),
]


def store_quotes(folder):
    """Send a row with an image and a PDF. Return the engine, and its labels with the place of a quote."""
    asked = labeling(prompt=Prompt(system="You label.", user="{{ body }}", images=["photo"], documents=["paper"]))
    rows = [{"ticket_id": "t0", "body": "It broke at once.", "photo": PNG, "paper": pdf()}]
    with Emulator() as emulator:
        workspace = Workspace(folder, emulator)
        submission_id = workspace.run(asked, rows).submission.submission_id
        engine = workspace.engine()
        requests = engine.labels(asked, submission_id).labels["llm_request_id"]
    engine.ledger.notes.add(
        submission_id,
        form_id="a",
        annotator="ada",
        group={"gold": "bug", "label": "billing", "reason": None},
        text="Say what a bug is.",
    )
    table = pa.table({"id": ["t0"], "body": ["It broke at once."], "quote_start": [3], "quote_end": [8]})
    pq.write_table(table.append_column("llm_request_id", requests), folder / "quoted.parquet")
    files = {"": str(folder / "quoted.parquet")}
    return engine, StoredAsset("quoted", "ticket_labels", "labels", "id", files, quotes={"quote": "body"})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_no_page_has_a_barrier_that_axe_knows(tmp_path, size, colors):
    """Open each page in a real browser, and run all rules on it: half a minute."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    assets, sample = store_dataset(tmp_path)
    engine, quoted = store_quotes(tmp_path)
    deployment = ReviewedDeployment(
        "here",
        engine.ledger,
        engine.payloads,
        "test",
        lambda: [*assets, sample, quoted],
        forms=[FORM, replace(FORM, dataset="ticket_labels")],
        judged={"tickets": "gold"},
        waiting=lambda: [("tickets", "A batch is in doubt.")],
    )
    is_small = size[0] < 800
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    found = []
    with (
        closing(engine.ledger),
        on_socket(review_app(deployment, Door(user_header="X-User"))) as client,
        sync_playwright() as playwright,
        closing(playwright.chromium.launch(executable_path=chromium(), args=sandbox)) as browser,
    ):
        form = {"form_id": "f", "partition": "", "row_key": "t0", "kind": "label", "answer_topic": '"bug"'}
        own = {"Origin": f"http://127.0.0.1:{client.port}", "Content_Type": "application/x-www-form-urlencoded"}
        assert client.ask("POST", PAGES["judging"], urlencode(form), X_User="ada", **own).status == 303
        known, stranger = (
            browser.new_context(
                viewport={"width": size[0], "height": size[1]},
                color_scheme=colors,
                has_touch=is_small,
                is_mobile=is_small,
                extra_http_headers=headers,
            ).new_page()
            for headers in ({"X-User": "ada"}, {})
        )
        opened = [*((name, path, known) for name, path in PAGES.items()), ("without a session", STRANGER, stranger)]
        for name, path, page in opened:
            page.goto(f"http://127.0.0.1:{client.port}{path}")
            page.locator("h1").first.wait_for()
            page.evaluate("document.querySelectorAll('main details').forEach(folded => (folded.open = true))")
            rules = {"resultTypes": ["violations"], "runOnly": RULES}
            violations = Axe().run(page, options=rules).response["violations"]
            found += [(name, each["id"], [node["html"] for node in each["nodes"]]) for each in violations]
            if page.evaluate("document.documentElement.scrollWidth") > size[0]:
                found.append((name, "wider than the screen", []))
    assert found == []
