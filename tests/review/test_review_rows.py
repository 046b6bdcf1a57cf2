"""Rows are data: any value stays text on the page."""

from __future__ import annotations

from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.binary_values import BinaryValue, read_bytes
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from tests.review.served_dataset import PNG

HOSTILE = {
    "script": "<script>window.hurt = 1</script>",
    "picture": "<img src=x onerror='window.hurt = 1'>",
    "attribute": '" onmouseover="window.hurt = 1" x="\'',
    "template": "{{ 7 * 7 }}{% raw %}",
    "address": "javascript:window.hurt=1",
    "ansi": "\x1b[31mred\x1b[0m \x07\x00",
    "right to left": "\u202egnp.exe \u2066 \u05d0",
    "separators": "a\u2028b\r\nc",
    "lone": "\U0001f642 \ufffe",
    "long": "<b>" * 350_000,
}
TAGS = {
    *(
        "a",
        "aside",
        "bdi",
        "body",
        "button",
        "details",
        "div",
        "dl",
        "dt",
        "dd",
        "fieldset",
        "form",
        "h1",
        "h2",
        "head",
    ),
    *("header", "html", "i", "img", "input", "kbd", "label", "legend", "li", "link", "main", "meta", "nav", "option"),
    *(
        "p",
        "pre",
        "rect",
        "script",
        "section",
        "select",
        "span",
        "strong",
        "summary",
        "table",
        "tbody",
        "td",
        "th",
        "thead",
    ),
    *("title", "tr", "ul"),
}


class Reader(HTMLParser):
    """A browser's parse of a page, as far as the tests need it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def client(serve, tmp_path):
    names = list(HOSTILE)
    table = pa.table(
        {
            "id": names,
            "text": list(HOSTILE.values()),
            "<b>name": list(HOSTILE.values()),
            "nested": [{"a": v} for v in HOSTILE.values()],
        }
    )
    pq.write_table(table, tmp_path / "labels.parquet")
    pq.write_table(table.select(["id", "text"]), tmp_path / "gold.parquet")
    pq.write_table(pa.table({"id": list(HOSTILE.values())}), tmp_path / "keys.parquet")
    pq.write_table(table.select(["id"]).slice(0, 0), tmp_path / "empty.parquet")
    pq.write_table(
        pa.table({"id": ["a"], "share": [0.1 + 0.2], "keys": [["a long key"] * 9]}), tmp_path / "shares.parquet"
    )
    assets = [
        StoredAsset(name, row_key="id", files={"": str(tmp_path / f"{name}.parquet")})
        for name in ("labels", "gold", "keys", "shares", "empty")
    ]
    nothing = SimpleNamespace()
    door = Door()
    started = serve(review_app(ReviewedDeployment("<i>here</i>", nothing, nothing, "test", lambda: assets), door))
    started.come_in(door.token())
    return started


def read(client, path: str) -> Reader:
    answer = client.get(path)
    assert answer.status == 200, answer.text
    reader = Reader()
    reader.feed(answer.text)
    reader.close()
    scripts = [attributes for tag, attributes in reader.tags if tag == "script"]
    assert scripts == [{"src": "/static/review.js", "defer": None}]
    assert {tag for tag, _ in reader.tags} <= TAGS
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        href = attributes.get("href") or "/"
        assert href.startswith(("/", "#", "?", "data:,")), href
    return reader


def test_a_table_of_hostile_rows_is_text(client):
    page = read(client, "/table/labels")
    assert "<script>window.hurt = 1</script>" in page.text
    assert "{{ 7 * 7 }}{% raw %}" in page.text
    assert "␛[31mred" in page.text
    assert len(client.get("/table/labels").text) < 100_000  # only the beginning of a cell of a megabyte is shown


def test_a_table_without_rows_says_so_and_one_whose_rows_a_filter_hides_says_that(client):
    assert "This table has no rows." in read(client, "/table/empty").text
    assert "No row passes these filters." in read(client, "/table/labels?where=id:is:nothing").text


def test_a_number_has_six_digits_and_all_where_one_points_and_a_long_cell_of_any_type_is_cut_by_the_style(client):
    page = read(client, "/table/shares")
    assert "0.30000000000000004" not in page.text
    assert ("bdi", {"title": "0.30000000000000004"}) in page.tags
    assert [attributes["class"] for tag, attributes in page.tags if tag == "td"] == ["short", "number", "long"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_of_a_hostile_row_is_text(client, name):
    page = read(client, f"/row/labels?by=id&key={quote(name)}")
    shown = HOSTILE[name].replace("\r\n", "\n")[:100]
    for code in (0, 7, 27):
        shown = shown.replace(chr(code), chr(0x2400 + code))
    assert shown in page.text.replace("\r", "").replace("␍", "")
    if name == "long":
        assert "1,030,000 more characters" in page.text
        assert len(client.get(f"/row/labels?by=id&key={name}&whole=1").text) > 1_050_000


def test_a_hostile_key_leads_to_its_row(client):
    page = read(client, "/table/keys")
    links = [a["data-row"] for tag, a in page.tags if tag == "tr" and "data-row" in a]
    assert len(links) == len(HOSTILE)
    for link, value in zip(links, HOSTILE.values(), strict=True):
        if len(value) < 1_000:  # the server refuses an address of a megabyte
            read(client, link)


@pytest.mark.parametrize("text", [*HOSTILE.values()][:-1])
def test_a_hostile_filter_is_text(client, text):
    asked = quote(text)
    page = read(client, f"/table/labels?q={asked}&where={quote('<b>name')}:has:{asked}&order={asked}")
    assert "row" in page.text


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/table/none", 404, "There is no table"),
        ("/table/labels?where=x", 400, "There is no column"),
        ("/table/labels?where=id:zz:1", 400, "There is no column"),
        ("/table/labels?column=id&kind=zz", 400, "There is no filter"),
        ("/table/labels?in=2026", 400, "has nothing stored of 2026"),
        ("/row/labels", 404, "names no row"),
        ("/row/labels?by=id&key=none", 404, "has no row none"),
        ("/row/labels?by=zz&key=none", 404, "has no row none"),
        ("/table/labels?page=-1", 200, "10 rows"),
        ("/table/labels?page=99999999999999999999", 200, "10 rows"),
    ],
)
def test_an_address_that_names_nothing_says_so(client, path, status, words):
    answer = client.get(path)
    assert (answer.status, words in answer.text) == (status, True), answer.text


def test_a_table_that_cannot_be_read_is_a_page_that_says_so(client, tmp_path):
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 half")
    for path in ("/table/labels", "/row/labels?by=id&key=a"):
        answer = client.get(path)
        assert answer.status == 502
        assert "The files of this table cannot be read: " in answer.text
        assert "<nav" in answer.text
    assert client.get("/row/gold?by=id&key=script").status == 200


def test_the_same_row_elsewhere_is_shown_and_what_differs_is_marked(serve, tmp_path):
    pq.write_table(pa.table({"id": ["a", "b"], "label": ["x", "y"], "llm_model": ["m", "m"]}), tmp_path / "one.parquet")
    pq.write_table(pa.table({"id": ["a", "b"], "label": ["x", "z"]}), tmp_path / "two.parquet")
    (tmp_path / "gone.parquet").write_bytes(b"no Parquet")
    assets = [
        StoredAsset(name, row_key="id", files={"": str(tmp_path / f"{name}.parquet")})
        for name in ("one", "two", "gone")
    ]
    door = Door()
    client = serve(
        review_app(ReviewedDeployment("here", SimpleNamespace(), SimpleNamespace(), "t", lambda: assets), door)
    )
    client.come_in(door.token())
    same, other = (client.get(f"/row/one?by=id&key={key}").text for key in "ab")
    assert 'class="differs"' not in same
    assert other.count('class="differs"') == 2
    assert "/row/two?by=id&amp;key=b" in other


@pytest.mark.parametrize(
    ("value", "said", "shown"),
    [
        (b"%PDF-1.7\n" + bytes(991), "PDF, 1,000 bytes", 'href="data:application/pdf;base64,JVBERi0'),
        (PNG, f"image/png, {len(PNG)} bytes", '<img src="data:image/png;base64,iVBOR'),
        (b"<script>window.hurt = 1</script>", "32 bytes", None),
        (b"", "0 bytes", None),
    ],
)
def test_bytes_are_a_document_an_image_or_their_size(serve, tmp_path, value, said, shown):
    pq.write_table(pa.table({"id": ["a"], "file": [value]}), tmp_path / "papers.parquet")
    papers = StoredAsset("papers", row_key="id", files={"": str(tmp_path / "papers.parquet")})
    door = Door()
    client = serve(
        review_app(ReviewedDeployment("here", SimpleNamespace(), SimpleNamespace(), "t", lambda: [papers]), door)
    )
    client.come_in(door.token())
    assert said in client.get("/table/papers").text
    row = client.get("/row/papers?by=id&key=a").text
    assert said in row
    assert "window.hurt" not in row
    assert shown in row if shown else "base64" not in row


def test_a_file_that_is_too_large_for_the_page_has_its_size_alone():
    large = b"%PDF-".ljust(20_000_001, b" ")
    assert read_bytes(large) == BinaryValue("PDF, 20,000,001 bytes")
    assert read_bytes(large[:-1]).address is not None
