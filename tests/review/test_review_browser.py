"""The page in a real Chromium: rows judged by keyboard, a server that is killed between two rows, hostile rows."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served_browsers import browsers, phone
from served_dataset import PNG
from served_pages import on_socket

from dagster_llm_batch.addresses import Filter, table_path
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.server import HOSTS, review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import Emulator
from tests.browser import chromium
from tests.engine.workspace import Workspace, labeling
from tests.pdfs import pdf

HERE = Path(__file__).parent
ROWS = 50

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs a Chromium or Chrome on this machine"),
]


@contextmanager
def served(folder: Path, port: str = "0"):
    command = [sys.executable, str(HERE / "served_sample.py"), str(folder), port]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1])
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def judgments(folder: Path):
    with closing(Ledger(f"sqlite:///{folder}/ledger.sqlite")) as ledger:
        return [(one.row_key, one.annotator, one.answer) for one in ledger.judgments.read("test", "tickets")]


def judge(page, number: int) -> None:
    page.get_by_text(f"Text of {number} ", exact=False).wait_for()
    # The page reacts to keys after its script has loaded.
    page.wait_for_load_state()
    page.keyboard.press(str(1 + number % 2))
    page.get_by_text(f"{number + 1} {'row' if number == 0 else 'rows'} judged by you").wait_for()


@pytest.mark.timeout(600)
def test_fifty_rows_are_judged_by_keyboard_and_a_killed_server_loses_none(tmp_path):
    """Drive a real browser through fifty rows, one key after the other."""
    texts = [f"Text of {number} <img src=x onerror='window.hurt=1'>" for number in range(ROWS)]
    keys = [f"t{number}" for number in range(ROWS)]
    pq.write_table(pa.table({"id": keys, "body": texts}), tmp_path / "tickets.parquet")
    path = "/label/tickets?as=tickets"
    with browsers("ada") as ((page,), wrong):
        with served(tmp_path) as (process, url):
            page.goto(url + path)
            for number in range(ROWS // 2):
                judge(page, number)
            # A page that the kill cuts off is not the page's fault.
            page.wait_for_load_state()
            process.kill()
            process.wait()
        assert len(judgments(tmp_path)) == ROWS // 2
        with served(tmp_path, url.rpartition(":")[2]) as (process, url):
            page.goto(url + path)
            for number in range(ROWS // 2, ROWS):
                judge(page, number)
            assert page.get_by_text("Nothing is left").is_visible()
            assert page.evaluate("window.hurt") is None
        assert wrong == []
    said = judgments(tmp_path)
    assert said == [(f"t{n}", "ada", {"topic": ("billing", "bug")[n % 2]}) for n in range(ROWS)]


@pytest.mark.timeout(600)
def test_rows_with_any_key_are_judged_but_for_keys_that_no_database_keeps(tmp_path):
    """A browser changes line breaks and NUL in the values of a form."""
    keys = ["a\nb", "a\r\nb", "a\rb", " a ", "100%", "%41", '"<b>&amp;', "\u202eb\u0301", "\x1b[31m", "\0"]
    pq.write_table(pa.table({"id": keys, "body": [f"Text of {n} " for n in range(10)]}), tmp_path / "tickets.parquet")
    with served(tmp_path) as (_, url), browsers("ada") as ((page,), wrong):
        page.goto(f"{url}/label/tickets?as=tickets")
        for number in range(9):
            judge(page, number)
        assert page.get_by_text("Nothing is left").is_visible()
        page.get_by_role("button", name="Undo").click()
        page.get_by_text("8 rows judged by you").wait_for()
        # This is longer than a double press.
        page.wait_for_timeout(350)
        judge(page, 8)
        assert wrong == []
    assert [row for row, _, _ in judgments(tmp_path)] == [*keys[:9], keys[8], keys[8]]


@pytest.mark.timeout(600)
def test_two_people_at_once_are_given_different_rows_and_keys_reach_what_the_mouse_does(tmp_path):
    keys = [f"t{number}" for number in range(4)]
    pq.write_table(pa.table({"id": keys, "body": keys}), tmp_path / "tickets.parquet")
    with served(tmp_path) as (_, url), browsers("ada", "bob") as ((ada, bob), wrong):
        for page in (ada, bob):
            page.goto(f"{url}/table/tickets")
            page.get_by_text("Judge these rows as tickets").click()
            page.locator("#judge").wait_for()
            page.wait_for_load_state()
        first, second = (page.locator("h1").inner_text() for page in (ada, bob))
        assert (first, second) == ("t0", "t1")
        ada.keyboard.press("d")
        ada.get_by_text("1 row judged by you").wait_for()
        bob.keyboard.press("s")
        bob.get_by_text("Undo t1").wait_for()
        bob.wait_for_load_state()
        bob.keyboard.press("u")
        bob.locator("h1", has_text="t1").wait_for()
        bob.get_by_label("Comment").fill("1 d s u")
        bob.get_by_text("bug").click()
        bob.get_by_role("button", name="Save").click()
        bob.get_by_text("1 row judged by you").wait_for()
        assert wrong == []
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")) as ledger:
        said = [(one.annotator, one.row_key, one.kind, one.comment) for one in ledger.judgments.read("test", "tickets")]
    assert said == [
        ("ada", "t0", "undecidable", None),
        ("bob", "t1", "skip", None),
        ("bob", "t1", "undo", None),
        ("bob", "t1", "label", "1 d s u"),
    ]


@pytest.mark.timeout(600)
def test_keys_that_are_pressed_while_the_next_row_loads_are_kept(tmp_path):
    keys = [f"t{number}" for number in range(5)]
    pq.write_table(pa.table({"id": keys, "body": keys}), tmp_path / "tickets.parquet")
    with served(tmp_path) as (_, url), browsers("ada") as ((page,), wrong):
        page.goto(f"{url}/label/tickets?as=tickets")
        page.locator("#judge").wait_for()
        page.wait_for_load_state()
        # The answer to the first key comes after all keys were pressed.
        held = []
        page.route("**/label/**", lambda route: held.append(route) if not held else route.continue_())
        page.keyboard.type("12s2")
        while not held:
            page.wait_for_timeout(20)
        held[0].continue_()
        page.get_by_text("3 rows judged by you").wait_for()
        page.locator("h1", has_text="t4").wait_for()
        assert wrong == []
    assert [(row, answer["topic"]) for row, _, answer in judgments(tmp_path) if answer] == [
        ("t0", "billing"),
        ("t1", "bug"),
        ("t3", "bug"),
    ]


@pytest.mark.timeout(600)
def test_skipped_rows_are_counted_and_brought_back_by_key_and_by_touch(tmp_path):
    keys = [f"t{number}" for number in range(3)]
    pq.write_table(pa.table({"id": keys, "body": keys}), tmp_path / "tickets.parquet")
    with served(tmp_path) as (_, url):
        address = f"{url}/label/tickets?as=tickets"
        with browsers("ada") as ((page,), wrong):
            page.goto(address)
            page.locator("#judge").wait_for()
            page.wait_for_load_state()
            page.keyboard.type("s1")
            page.get_by_text("1 row judged by you, 1 row skipped").wait_for()
            page.wait_for_timeout(350)
            page.keyboard.press("s")
            # When nothing else is left, the skipped rows are the next thing to do.
            page.get_by_text("Nothing is left").wait_for()
            assert page.locator("main .button, main .actions button").first.inner_text().startswith("Bring back 2")
            page.keyboard.press("b")
            page.locator("h1", has_text="t0").wait_for()
            assert "skipped" not in page.locator("main [role=status]").inner_text()
            page.wait_for_timeout(350)
            page.keyboard.press("s")
            page.locator("h1", has_text="t2").wait_for()
            assert wrong == []
        with phone(address) as (page, wrong):
            button = page.get_by_role("button", name="Bring back 1 skipped row")
            assert button.bounding_box()["height"] >= 44
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            button.tap()
            page.locator("h1", has_text="t0").wait_for()
            for number in (0, 2):
                page.locator("h1", has_text=f"t{number}").wait_for()
                tap_after_reading(page, "bug")
            page.get_by_text("3 rows judged by you").wait_for()
            # The first page has the next step.
            page.get_by_role("link", name="See how good the labels are").tap()
            page.get_by_text("How good are the labels?").wait_for()
            assert wrong == []
    assert [(row, answer["topic"]) for row, _, answer in judgments(tmp_path) if answer] == [
        ("t1", "billing"),
        ("t0", "bug"),
        ("t2", "bug"),
    ]


def press_at_once(page, keys: str) -> None:
    """Press keys within about a millisecond: before the answer to the first one can arrive."""
    page.evaluate(
        "keys => { for (const key of keys) document.body.dispatchEvent("
        "new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true })) }",
        keys,
    )


@pytest.mark.timeout(600)
def test_a_row_that_is_shown_again_is_not_judged_by_keys_that_were_meant_for_the_next(tmp_path):
    keys = [f"t{number}" for number in range(3)]
    pq.write_table(pa.table({"id": keys, "body": keys}), tmp_path / "tickets.parquet")
    with served(tmp_path) as (_, url), browsers("ada") as ((page,), _):
        page.goto(f"{url}/label/tickets?as=tickets")
        page.locator("#judge").wait_for()
        page.wait_for_load_state()
        # The server refuses a form without its id.
        page.evaluate("document.querySelector('#judge [name=form_id]').value = ''")
        press_at_once(page, "12")
        page.get_by_text("The form is of another page").wait_for()
        page.locator("h1", has_text="t0").wait_for()
        page.keyboard.press("1")
        page.get_by_text("1 row judged by you").wait_for()
    assert judgments(tmp_path) == [("t0", "ada", {"topic": "billing"})]


@pytest.mark.timeout(600)
def test_a_double_press_judges_one_row_and_the_same_key_judges_the_next_one_later(tmp_path):
    keys = [f"t{number}" for number in range(4)]
    pq.write_table(pa.table({"id": keys, "body": keys}), tmp_path / "tickets.parquet")
    with served(tmp_path) as (_, url), browsers("ada") as ((page,), wrong):
        page.goto(f"{url}/label/tickets?as=tickets")
        page.locator("#judge").wait_for()
        page.wait_for_load_state()
        press_at_once(page, "112")
        page.get_by_text("2 rows judged by you").wait_for()
        page.locator("h1", has_text="t2").wait_for()
        # This is longer than a double press.
        page.wait_for_timeout(350)
        page.keyboard.press("2")
        page.get_by_text("3 rows judged by you").wait_for()
        assert wrong == []
    assert [(row, answer["topic"]) for row, _, answer in judgments(tmp_path)] == [
        ("t0", "billing"),
        ("t1", "bug"),
        ("t2", "bug"),
    ]


def tap_after_reading(page, words: str) -> None:
    # This is longer than a double tap.
    page.wait_for_timeout(350)
    page.locator("#judge").get_by_text(words, exact=True).tap()


@pytest.mark.timeout(600)
def test_on_touch_all_that_is_pressed_is_large_and_no_key_is_named(tmp_path):
    pq.write_table(pa.table({"id": ["t0", "t1"], "body": ["a", "b"]}), tmp_path / "tickets.parquet")
    with served(tmp_path) as (_, url), phone(f"{url}/label/tickets?as=tickets") as (page, wrong):
        pressed = page.locator("#judge .choice, #judge button")
        assert min(box.bounding_box()["height"] for box in pressed.all()) >= 44
        assert not any(key.is_visible() for key in page.locator("kbd").all())
        boxes = [each.bounding_box() for each in page.locator("#judge .choice").first.locator("input, bdi").all()]
        circle, words = (box["y"] + box["height"] / 2 for box in boxes)
        assert abs(circle - words) < 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        # A link within text must not be known by its color alone.
        path = page.locator("header nav a").first
        assert path.evaluate("link => getComputedStyle(link).textDecorationLine") == "underline"
        # A tablet is as wide as a screen with a keyboard.
        page.set_viewport_size({"width": 1024, "height": 768})
        assert not page.locator(".keys").is_visible()
        assert wrong == []


@pytest.mark.timeout(600)
def test_on_touch_one_tap_judges_a_row_a_double_tap_judges_no_other_and_undo_is_in_view(tmp_path):
    """Texts are longer than the screen, so that the answers are below it."""
    keys = [f"t{number}" for number in range(4)]
    texts = [f"Text of {key}\n" * 60 for key in keys]
    pq.write_table(pa.table({"id": keys, "body": texts}), tmp_path / "tickets.parquet")
    with served(tmp_path) as (_, url), phone(f"{url}/label/tickets?as=tickets") as (page, wrong):
        tap_after_reading(page, "billing")
        page.get_by_text("1 row judged by you").wait_for()
        assert page.evaluate("scrollY") == 0
        # The second tap of a double tap meets the next row: here the row stays as new as if no time passed.
        page.evaluate("settled = performance.now() + 1e6")
        page.locator("#judge").get_by_text("bug", exact=True).tap()
        assert page.locator("#judge :checked").count() == 0
        page.evaluate("settled = -Infinity")
        tap_after_reading(page, "bug")
        page.get_by_text("2 rows judged by you").wait_for()
        place = page.get_by_role("button", name="Undo t1").bounding_box()
        assert 0 <= place["y"] <= 844 - place["height"]
        page.wait_for_timeout(350)
        page.get_by_role("button", name="Undo t1").tap()
        page.locator("h1", has_text="t1").wait_for()
        page.get_by_label("Comment").fill("Seen twice.")
        tap_after_reading(page, "billing")
        page.locator("h1", has_text="t2").wait_for()
        assert wrong == []
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")) as ledger:
        said = [(one.row_key, one.kind, one.answer, one.comment) for one in ledger.judgments.read("test", "tickets")]
    billing, bug = {"topic": "billing"}, {"topic": "bug"}
    assert said == [
        ("t0", "label", billing, None),
        ("t1", "label", bug, None),
        ("t1", "undo", None, None),
        ("t1", "label", billing, "Seen twice."),
    ]


class Listener:
    """Another server of this machine, which keeps every request that it receives."""

    def __init__(self, host: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.heard.append(f"{handler.requestline}\n{handler.headers}")
                handler.send_response(200)
                handler.send_header("Content-Type", "text/html")
                handler.end_headers()
                handler.wfile.write(b"<script>document.title = JSON.stringify(localStorage) + document.cookie</script>")

            def log_message(handler, *_words: object) -> None:  # noqa: N805
                pass

        self.heard: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://{host}:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.timeout(600)
def test_a_browser_comes_back_and_no_other_server_of_the_machine_learns_how(tmp_path):
    """Open two pages and two other servers in one browser profile, close it and open it again."""
    from playwright.sync_api import sync_playwright

    rows = StoredAsset("labels", row_key="id", others=("",), load=lambda _partition: pa.table({"id": ["t0", "t1"]}))
    nothing = SimpleNamespace()  # the pages of a table read neither ledger nor payloads
    doors = [Door(), Door()]
    apps = [review_app(ReviewedDeployment("here", nothing, nothing, "test", lambda: [rows]), door) for door in doors]
    others = [Listener("127.0.0.1"), Listener("localhost")]
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with on_socket(apps[0]) as first, on_socket(apps[1]) as second, sync_playwright() as playwright:
        urls = [f"http://127.0.0.1:{client.port}" for client in (first, second)]
        open_browser = partial(
            playwright.chromium.launch_persistent_context, tmp_path, executable_path=chromium(), args=sandbox
        )
        with closing(open_browser()) as browser:
            page = browser.pages[0]
            for url, door in zip(urls, doors, strict=True):
                page.goto(f"{url}/#token={door.token()}")
                page.get_by_text("labels").first.wait_for()
                assert page.url == f"{url}/"
        with closing(open_browser()) as browser:
            page = browser.pages[0]
            link = f"{urls[0]}{table_path('labels', None, [Filter.of('id', 't1')])}"
            # Like Dagster's page at localhost, which is another site.
            page.route("http://localhost/", lambda route: route.fulfill(body=f"<a href='{link}'>Rows</a>"))
            page.goto("http://localhost/")
            page.get_by_text("Rows").click()
            page.get_by_text("1 of 2 row").wait_for()
            page.goto(urls[1] + "/table/labels")
            page.get_by_text("2 rows").wait_for()
            secrets = [page.evaluate("localStorage.getItem('llm_batch_review')")]
            for other in others:
                page.goto(other.url)
                assert page.title() == "{}"
            assert browser.cookies() == []
        for client, url in ((first, urls[0]), (second, urls[1])):
            assert client.get("/", X_Review_Secret=secrets[0]).status == (200 if url == urls[1] else 403)
        for other in others:
            assert other.heard
            assert not [words for words in other.heard if secrets[0] in words or "review" in words.lower()]
            other.server.shutdown()
        with closing(playwright.chromium.launch(executable_path=chromium(), args=sandbox)) as stranger:
            page = stranger.new_page()
            page.goto(f"{urls[0]}/table/labels")
            page.get_by_text(f"dagster-llm-batch review --link --port {first.port}").wait_for()
            assert "t1" not in page.content()
            assert page.locator("h1").count() == 1


@pytest.mark.timeout(600)
def test_the_image_and_the_document_of_a_row_are_shown_where_it_is_judged_and_keys_still_judge_it(tmp_path):
    """Send both by the SDK, then judge a row after the viewer of the browser was pressed."""
    rows = [{"ticket_id": f"t{n}", "photo": PNG, "paper": pdf(mark=str(n))} for n in range(3)]
    asked = labeling(prompt=Prompt("What is it?", images=["photo"], documents=["paper"]))
    with Emulator() as emulator:
        workspace = Workspace(tmp_path, emulator)
        submission = workspace.run(asked, rows).submission
        engine = workspace.engine()
        pq.write_table(engine.labels(asked, submission.submission_id).labels, tmp_path / "labels.parquet")
    asset = StoredAsset("labels", "ticket_labels", "labels", "ticket_id", {"": str(tmp_path / "labels.parquet")})
    form = LabelForm("ticket_labels", "ticket_id", {"properties": {"topic": {"enum": ["billing", "bug"]}}})
    deployment = ReviewedDeployment("here", engine.ledger, engine.payloads, "test", lambda: [asset], forms=[form])
    app = review_app(deployment, Door(user_header="X-User"))
    with closing(engine.ledger), on_socket(app) as client, browsers("ada") as ((page,), wrong):
        page.goto(f"http://127.0.0.1:{client.port}/label/labels?as=ticket_labels")
        shown = page.locator("[aria-label=Row]")
        broken = "{ const link = document.createElement('a'); link.href = 'data:application/pdf;base64,%'; return "
        assert page.evaluate(f"() => {broken} showDocument(link) }}") == ""
        assert shown.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 1
        for number in range(2):
            page.locator("h1", has_text=f"t{number}").wait_for()
            assert shown.locator("iframe").get_attribute("src").startswith(f"blob:http://127.0.0.1:{client.port}/")
            # The viewer takes no keys when it opens, but has them from a click on until the mouse leaves it.
            page.wait_for_timeout(1_500)
            if number == 1:
                shown.locator("iframe").click()
                page.locator("h1", has_text=f"t{number}").hover()
                page.mouse.move(2, 2)
            page.keyboard.press("1")
            page.get_by_text(f"{number + 1} {'rows' if number else 'row'} judged by you").wait_for()
        assert wrong == []
        said = [one.row_key for one in engine.ledger.judgments.read("test", "ticket_labels")]
    assert said == ["t0", "t1"]


class SignInProxy:
    """A proxy like oauth2-proxy: it removes the user's header of a request, and names the user who signed in."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                size = int(handler.headers.get("Content-Length") or 0)
                sent = {n: v for n, v in handler.headers.items() if n.lower() not in ("x-forwarded-user", "host")}
                sent |= {"X-Forwarded-User": "ada@example.com", "X-Forwarded-Proto": "http"}
                behind = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
                behind.request(handler.command, handler.path, handler.rfile.read(size), sent)
                answer = behind.getresponse()
                body = answer.read()
                handler.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "date", "server"):
                        handler.send_header(name, value)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)
                behind.close()

            do_POST = do_GET  # noqa: N815 - the name that the server looks for

            def log_message(handler, *_words: object) -> None:  # noqa: N805
                pass

        self.behind = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"labels.localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.timeout(600)
def test_behind_a_proxy_that_signs_people_in_rows_are_judged_by_the_person_that_it_names(tmp_path):
    """Follow docs/how-to/look-at-rows.md: --user-header and --allow-host, and a name that leads to this machine."""
    pq.write_table(pa.table({"id": ["t0", "t1"], "body": ["a", "b"]}), tmp_path / "tickets.parquet")
    asset = StoredAsset("tickets", "tickets", "labels", "id", {"": str(tmp_path / "tickets.parquet")})
    form = LabelForm("tickets", "id", {"properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]})
    ledger, payloads = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), PayloadStore(str(tmp_path / "payloads"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: [asset], forms=[form])
    proxy = SignInProxy()
    app = review_app(deployment, Door("X-Forwarded-User", [proxy.host]), [*HOSTS, proxy.host])
    # A browser that names somebody itself is not believed.
    with closing(ledger), on_socket(app) as client, browsers("eve") as ((page,), wrong):
        proxy.behind = client.port
        page.set_extra_http_headers({"X-Forwarded-User": "eve"})
        page.goto(f"http://{proxy.host}/label/tickets?as=tickets")
        page.locator("#judge").wait_for()
        assert page.locator(".person").inner_text() == "ada@example.com"
        page.wait_for_load_state()
        page.keyboard.press("2")
        page.get_by_text("1 row judged by you").wait_for()
        assert wrong == []
        said = [(one.row_key, one.annotator) for one in ledger.judgments.read("test", "tickets")]
        assert client.get("/").status == 403
        proxy.server.shutdown()
    assert said == [("t0", "ada@example.com")]
