"""From one mistake to the next, in the order and under the filters of the list that it was opened from."""

from __future__ import annotations

import html
import re
from types import SimpleNamespace
from urllib.parse import quote, urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_browsers import browsers, phone
from served_dataset import FORM, store_dataset
from served_pages import on_socket

from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from tests.browser import chromium

OF_TICKETS = "where=tickets_label:is:billing&where=gold:is:bug"


@pytest.fixture
def app(tmp_path):
    assets, _ = store_dataset(tmp_path)
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    payloads = PayloadStore(str(tmp_path / "payloads"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: assets, forms=[FORM])
    yield review_app(deployment, Door(user_header="X-User"))
    ledger.close()


def beside(client, path: str) -> tuple[str, dict[str, str]]:
    """Return the words about the place of a mistake, and the links to those beside it."""
    text = client.get(path, X_User="ada").text.partition('aria-label="Mistakes">')[2].partition("</nav>")[0]
    links = {rel: html.unescape(url) for rel, url in re.findall(r'rel="(\w+)" href="([^"]*)"', text)}
    return (re.findall(r"Row [^<]*", text) or [""])[0], links


def test_mistakes_lead_to_each_other_in_the_order_and_under_the_filters_of_their_list(serve, app):
    client = serve(app)
    table = client.get(f"/table/quality_mistakes?{OF_TICKETS}&order=-id", X_User="ada").text
    path = html.unescape(re.findall(r'data-row="([^"]*)"', table)[0])
    seen = []
    while path:
        words, links = beside(client, path)
        seen.append((re.findall(r"key=(\w+)", path)[0], words))
        path = links.get("next", "")
    assert seen == [("t29", "Row 1 of 3"), ("t28", "Row 2 of 3"), ("t27", "Row 3 of 3")]
    assert "key=t28" in links["prev"]
    # Without a list, all mistakes are one.
    assert beside(client, "/row/quality_mistakes?by=id&key=t28")[0] == "Row 22 of 30"
    # An example of a group leads to the other rows of the group.
    group = client.get("/failures/quality_failures?where=candidate:is:tickets", X_User="ada").text
    example = html.unescape(re.findall(r'Examples: <a href="([^"]*)"', group)[0])
    assert beside(client, example)[0] == "Row 1 of 3"


def test_other_rows_have_no_mistakes_beside_them_and_a_wrong_list_is_a_sentence(serve, app):
    client = serve(app)
    assert beside(client, "/row/shop/tickets?by=id&key=t0") == ("", {})
    assert beside(client, f"/row/quality_mistakes?by=id&key=t0&from={quote(OF_TICKETS)}") == ("", {})
    for listed, status, words in (
        ("where=none:is:1", 400, "There is no column"),
        ("where=%00", 400, "There is no column"),
        ("<b>", 200, "Row 22 of 30"),
        ("in=<b>", 400, "nothing stored"),
        ("order=<b>&page=x", 200, "Row 22 of 30"),
    ):
        answer = client.get(
            f"/row/quality_mistakes?{urlencode({'by': 'id', 'key': 't28', 'from': listed})}", X_User="a"
        )
        assert (answer.status, words in answer.text, "<b>" in answer.text) == (status, True, False)


def test_a_row_that_is_wrong_in_two_columns_shows_both(serve, tmp_path):
    columns = {"id": ["t0", "t0"], "target": ["topic", "tone"], "gold": ["bug", "calm"], "rules_label": ["a", "b"]}
    mistakes = pa.table({**columns, "rules_reason": pa.array([None, None], pa.string())})
    pq.write_table(mistakes, tmp_path / "mistakes.parquet")
    asset = StoredAsset("quality_mistakes", files={"": str(tmp_path / "mistakes.parquet")})
    deployment = ReviewedDeployment("here", SimpleNamespace(), SimpleNamespace(), "test", lambda: [asset])
    client = serve(review_app(deployment, Door(user_header="X-User")))
    text = client.get("/row/quality_mistakes?by=id&key=t0", X_User="ada").text
    assert re.findall(r"Gold and labels of <em><bdi>(\w+)<", text) == ["topic", "tone"]
    assert "rows have this key" not in text
    assert "Row 1 of 1<" in text


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="needs a Chromium or Chrome on this machine")
def test_in_a_browser_keys_and_taps_go_from_one_mistake_to_the_next(app):
    with on_socket(app) as client:
        url = f"http://127.0.0.1:{client.port}/table/quality_mistakes?{OF_TICKETS}"
        with browsers("ada") as ((page,), wrong):
            page.goto(url)
            page.get_by_role("link", name="t27").click()
            page.get_by_text("Row 1 of 3").wait_for()
            # The second key is pressed while the page of the first one loads.
            page.keyboard.type("nn")
            page.get_by_text("Row 3 of 3").wait_for()
            page.keyboard.press("n")
            page.keyboard.press("p")
            page.get_by_text("Row 2 of 3").wait_for()
            page.get_by_role("link", name="Row 2 of 3").click()
            page.get_by_text("3 of 30 rows").wait_for()
            assert wrong == []
        with phone(f"{url.partition('/table')[0]}/") as (page, wrong):
            page.goto(url)
            page.get_by_role("link", name="t27").tap()
            place = page.get_by_role("link", name="Next mistake").bounding_box()
            page.get_by_role("link", name="Next mistake").tap()
            page.get_by_text("Row 2 of 3").wait_for()
            assert page.get_by_role("link", name="Next mistake").bounding_box() == place
            assert place["height"] >= 44
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            assert wrong == []
