"""A newer price book is fetched on request, and used if the deployment asks for it; its age is shown."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from genai_prices.data_snapshot import set_custom_snapshot

from dagster_llm_batch.cli.doctor import judge_price_rules
from dagster_llm_batch.cli.findings import Severity
from dagster_llm_batch.core import price_book, price_sources
from dagster_llm_batch.core.price_book import BOOK_FILE, fetched_at, fetched_book, use_book
from dagster_llm_batch.core.price_sources import SOURCES, PriceSource, oldest_source
from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Usage

PUBLISHED = [
    {
        "id": "openai",
        "name": "OpenAI",
        "api_pattern": "https://api\\.openai\\.com",
        "models": [
            {
                "id": "gpt-4o",
                "match": {"equals": "gpt-4o"},
                "prices": {"input_mtok": 70, "output_mtok": {"base": 90, "tiers": [{"start": 1000, "price": 95}]}},
            }
        ],
    }
]


def forget_books():
    """Forget all books, as a new process has not read any yet."""
    price_book._READ_AT.clear()
    set_custom_snapshot(None)


@pytest.fixture(autouse=True)
def _bundled_again():
    yield
    forget_books()


@pytest.fixture
def published():
    """Serve a book on the loopback interface; `answer` is the response, and `asked` counts the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked += 1
            status, body = server.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.answer = 0, (200, json.dumps(PUBLISHED).encode())
        server.url = f"http://127.0.0.1:{server.server_port}/data.json"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def input_usd():
    return tariff("openai", "gpt-4o", datetime.now(UTC)).price(Usage(1_000_000)).realtime_usd


def test_a_book_is_fetched_only_when_asked_for_and_counts_only_where_that_is_said(project, published):
    before = project.json("plan", "ticket_labels")["plans"][0]["estimated_usd"]
    assert project.json("prices")["fetched_at"] is None
    assert published.asked == 0
    fetched = project.json("prices", "--fetch", "--url", published.url)
    assert (published.asked, fetched["is_used"]) == (1, False)
    assert datetime.now(UTC) - datetime.fromisoformat(fetched["fetched_at"]) < timedelta(minutes=5)

    forget_books()  # like another process
    assert project.json("plan", "ticket_labels")["plans"][0]["estimated_usd"] == before
    project.change("LLMBatchResource(", "LLMBatchResource(fetched_prices=True, ")
    dearer = project.json("plan", "ticket_labels")["plans"][0]["estimated_usd"]
    assert Decimal(dearer) > 5 * Decimal(before)
    assert project.json("prices")["is_used"] is True
    assert published.asked == 1


def test_the_bundled_book_needs_no_definitions_and_a_store_is_read_by_its_address(project, published):
    project.change("print(", "raise RuntimeError(")
    shown = project.cli("prices").stdout
    assert "Add --deployment to show whether your definitions use a fetched one." in " ".join(shown.split())
    told = json.loads(project.cli("prices", "--json").stdout)
    assert (told["fetched_at"], told["is_used"]) == (None, None)

    store = ["--payloads", str(project.folder / "store"), "--json"]
    fetched = json.loads(project.cli("prices", "--fetch", "--url", published.url, *store).stdout)
    forget_books()
    told = json.loads(project.cli("prices", *store).stdout)
    assert told["fetched_at"] == fetched["fetched_at"] is not None
    assert told["is_used"] is None

    for words in (["--deployment"], ["-f", "support.py"], ["--fetch"]):
        assert "Definitions cannot be loaded" in project.cli("prices", *words, code=1).stderr


def test_where_two_tables_differ_on_a_model_plan_doctor_and_prices_report_it(project, published):
    told = project.json("prices")["disputes"]
    names = {dispute["model"] for dispute in told if dispute["vendor"] == "mistral"}
    assert {"mistral-large-latest", "mistral-medium", "open-mistral-nemo", "magistral-small-latest"} <= names
    shown = project.on_file("prices").stdout
    assert f"{len(told)} differ by more than 5 %" in " ".join(shown.split())
    assert "mistral-medium" in shown
    assert project.json("plan", "ticket_labels")["plans"][0]["notes"] == []

    # The published book has another price of the project's model than the second table.
    project.change("LLMBatchResource(", "LLMBatchResource(fetched_prices=True, ")
    project.json("prices", "--fetch", "--url", published.url)
    said = "Two price tables differ on gpt-4o by more than 5 %: genai-prices has 70 USD a million tokens of input"
    assert said in project.on_file("plan", "ticket_labels").stdout
    assert said in project.json("plan", "ticket_labels")["plans"][0]["notes"][0]
    [finding] = [one for one in project.json("doctor")["findings"] if one["check"] == "dataset ticket_labels"]
    assert finding["verdict"] == "warning"
    assert said in finding["then"]
    assert "Spend(price=TokenPrice(...))" in finding["then"]


def test_the_age_of_a_fetched_book_is_told_and_an_old_one_is_warned_of(project, published):
    def finding():
        forget_books()
        return next(one for one in project.json("doctor")["findings"] if one["check"] == "price book")

    assert finding()["verdict"] == "ok"
    project.change("LLMBatchResource(", "LLMBatchResource(fetched_prices=True, ")
    assert (finding()["verdict"], "no book was fetched" in finding()["said"]) == ("warning", True)
    project.json("prices", "--fetch", "--url", published.url)
    assert (finding()["verdict"], "genai-prices, fetched on" in finding()["said"]) == ("ok", True)
    [file] = project.folder.rglob(BOOK_FILE)
    with PayloadStore(file.parent).writer(BOOK_FILE) as stored:
        stored.write(fetched_book(json.dumps(PUBLISHED).encode(), datetime.now(UTC) - timedelta(days=91)))
    assert finding()["verdict"] == "warning"
    assert "prices --fetch" in finding()["then"]


@pytest.mark.parametrize("answer", [(503, b"busy"), (200, b"<html>"), (200, b'{"no": "list"}'), (200, b'[{"id": 3}]')])
def test_what_is_no_book_leaves_the_one_that_is_there(project, published, answer):
    project.json("prices", "--fetch", "--url", published.url)
    kept = fetched_at()
    published.answer = answer
    said = project.on_file("prices", "--fetch", "--url", published.url, code=1)
    assert "book" in said.stderr
    assert (fetched_at(), input_usd()) == (kept, Decimal(70))


def test_a_fetched_book_has_the_prices_it_was_published_with_tiers_included():
    use_book(fetched_book(json.dumps(PUBLISHED).encode(), datetime(2026, 11, 27, tzinfo=UTC)))
    assert fetched_at() == datetime(2026, 11, 27, tzinfo=UTC)
    assert input_usd() == 70
    prices = tariff("openai", "gpt-4o", datetime.now(UTC))
    assert prices.price(Usage(2_000, 100)).realtime_usd == Decimal("0.14") + Decimal("0.0095")
    with pytest.raises(ConfigError, match="no price book"):
        use_book(b"{}")


def test_the_oldest_price_rule_is_told_of_the_providers_that_are_used(project):
    [finding] = [finding for finding in project.json("doctor")["findings"] if finding["check"] == "price rules"]
    told = project.json("prices")
    assert told["oldest_rule"]["read_on"] == min(rule["read_on"] for rule in told["rules"])
    assert {"rule", "document", "read_on", "books"} == set(told["oldest_rule"])
    assert len(told["rules"]) == len(SOURCES)
    assert told["oldest_rule"]["document"] in " ".join(project.on_file("prices").stdout.split())
    # The project uses only OpenAI.
    oldest = oldest_source(["openai"])
    assert finding["verdict"] == "ok"
    said = "The oldest rule for the configured providers was read in a vendor's documents on "
    assert f"{said}{oldest.read_on} (" in finding["said"]
    assert "counts as current for a year" in finding["said"]
    assert "The oldest rule was read" in judge_price_rules(None, oldest.read_on).said
    later = judge_price_rules(["openai"], date(2028, 1, 1))
    assert later.verdict is Severity.WARNING
    assert "more than a year, so estimates and costs that rest on it may be wrong" in later.said
    assert oldest.document in later.then


def test_each_price_rule_names_a_source_and_no_rule_has_a_date_of_its_own():
    package = Path(price_book.__file__).parents[1]
    rules = [
        package / "core" / f"{name}.py"
        for name in ("price_book", "price_disputes", "pricing", "media_tokens", "token_counts")
    ]
    rules += [package / "providers" / "usage.py", *package.glob("providers/*/replies.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in rules}
    named = {name for name, value in vars(price_sources).items() if isinstance(value, PriceSource)}
    assert {name for name in named if any(name in text for text in texts.values())} == named
    for path, text in texts.items():
        if path.name != "token_counts.py":  # its other figures are fitted or counted, with their dates
            assert not re.search(r"20\d\d-\d\d|https://\S*pric", text), path
    for source in SOURCES:
        assert source.rule
        assert source.document
        assert source.read_on <= datetime.now(UTC).date()
