"""`prices`: which price book is in use, how old it is, and a newer one, where that is asked for."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import click

from dagster_llm_batch.cli.commands import Command, fitting, json_option
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.output import age, print_json
from dagster_llm_batch.core.price_book import (
    BOOK_FILE,
    book_text,
    disputes,
    fetched_at,
    fetched_book,
    newest_price_change,
    use_book,
)
from dagster_llm_batch.core.price_sources import SECOND_TABLE, SOURCES, PriceSource, oldest_source
from dagster_llm_batch.core.price_table import second_prices
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.text import plain_words

if TYPE_CHECKING:
    from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["OLD_BOOK", "prices_command", "rules_text"]

OLD_BOOK = timedelta(days=90)
"""A fetched book that is older is warned of."""


class FetchError(LLMBatchError):
    """The published price book could not be had."""


@click.command("prices", cls=Command, examples=["", "-f labels.py", "--fetch --payloads s3://bucket/payloads"])
@ledger_command
@click.option("--deployment", "looks", is_flag=True, help="Load the definitions, and show the book that they use.")
@click.option("--fetch", is_flag=True, help="Fetch the book that genai-prices publishes, and store it.")
@click.option("--url", help="Address to fetch it from.  [default: that of genai-prices]")
@json_option
def prices_command(deployment: DeploymentAccess, url: str | None, *, looks: bool, fetch: bool, as_json: bool) -> None:
    """Show the price book, its age, and the oldest of this package's own price rules.

    It also lists models whose price differs between two tables. Nothing is fetched without --fetch. Definitions are
    loaded only with --deployment, -m, -f, or for --fetch without --payloads.

    A fetched book is stored in the payload root, and is used if `LLMBatchResource(fetched_prices=True)` is set. After
    90 days you get a warning.
    """
    now = datetime.now(UTC)
    named = None if looks else deployment.named_payloads
    is_looked_at = named is not None or looks or fetch or deployment.is_typed
    at = is_used = None
    if is_looked_at:
        from dagster_llm_batch.loop.deployment import use_fetched_book  # noqa: PLC0415 - pyarrow and SQLAlchemy

        payloads = named or deployment.payloads
        if fetch:
            _fetch(payloads, url, now)
        use_fetched_book(payloads)
        at = fetched_at()
        # An address alone does not show whether a deployment uses its book.
        is_used = deployment.resource.fetched_prices if named is None and deployment.has_code else None
    oldest = oldest_source()
    if as_json:
        told = {"fetched_at": at, "is_used": is_used and at is not None}
        rules = {"oldest_rule": oldest._asdict(), "rules": [source._asdict() for source in SOURCES]}
        differ = {"disputes": [dispute._asdict() for dispute in disputes(now)]}
        print_json({**told, "newest_price_change": newest_price_change(now.date()), **rules, **differ})
        return
    said = [
        book_text(now.date()) + ("" if at is None else f"; {age(now - at)} old") + ".",
        f"{rules_text(oldest, now.date())} See {oldest.document}",
        _disputes_text(now),
    ]
    if not is_looked_at:
        said.append("This is the bundled book. Add --deployment to show whether your definitions use a fetched one.")
    elif at is not None and not is_used:
        said.append("It counts where LLMBatchResource(fetched_prices=True) says so.")
    for text in said:
        click.echo(fitting(text, sys.stdout, indent="  "))
    if at is not None and now - at > OLD_BOOK:
        click.echo("It is old. Fetch it again: dagster-llm-batch prices --fetch", err=True)


def _disputes_text(now: datetime) -> str:
    """Return on which models two tables differ, vendor by vendor."""
    found = disputes(now)
    by_vendor = {one.vendor: [other.model for other in found if other.vendor == one.vendor] for one in found}
    listed = "".join(f"\n  {vendor}: {', '.join(models)}" for vendor, models in by_vendor.items())
    return (
        f"Of {len(second_prices()):,} models in both genai-prices and {SECOND_TABLE.document.partition(',')[0]}, "
        f"{len(found):,} differ by more than 5 %. Costs and limits take the higher price of each; --json has both."
        f"{listed}"
    )


def rules_text(oldest: PriceSource, today: date, among: str = "") -> str:
    """Return the number of our own price rules and the age of the oldest; `among` limits it to some of them."""
    return (
        f"{len(SOURCES)} rules of this package add prices that the price book lacks, such as a batch's discount. The "
        f"oldest rule{among} was read in a vendor's documents on {oldest.read_on} ({age(today - oldest.read_on)} ago): "
        f"{oldest.rule}."
    )


def _fetch(payloads: PayloadStore, url: str | None, now: datetime) -> None:
    import httpx2  # noqa: PLC0415 - what genai-prices fetches with; nobody else needs it here
    from genai_prices.update_prices import UpdatePrices  # noqa: PLC0415 - as above

    updater = UpdatePrices() if url is None else UpdatePrices(url=url)
    try:
        reply = httpx2.get(updater.url, timeout=updater.request_timeout)
        reply.raise_for_status()
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise FetchError(
            f"Could not fetch {updater.url}: {plain_words(str(error))}. The present price book stays in use. "
            "Check the address, and run the command again."
        ) from None
    book = fetched_book(reply.content, now)
    with payloads.writer(BOOK_FILE) as file:
        file.write(book)
    use_book(book)
