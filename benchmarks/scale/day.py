"""The estimates of docs/design/scale.md: the measurements, extrapolated to a hundred million rows a day.

- python -m benchmarks.scale.day: print the tables
- python -m benchmarks.scale.day --write: write them into the page
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT

__all__ = ["FIGURES", "PAGE", "shard_tables", "tables", "written"]

PAGE = ROOT / "docs" / "design" / "scale.md"
FIGURES = Path(__file__).with_name("measured.json")

ROWS_A_DAY = 100_000_000
PARTITIONS_A_DAY = 240
"""Ten tables, each with a partition an hour."""

KEPT_DAYS = 30
"""Days that requests and raw results stay in the payload store: `prune` with `raw_older_than`."""

CALL_SECONDS = 0.2
"""The assumed time of a vendor's list call."""

CORE_HOUR_USD = 0.05
"""The assumed on-demand price of a core with 4 GB."""

PRICED_AT = datetime(2026, 11, 28, tzinfo=UTC)  # fixed, so that the page does not change with the date


@dataclass(frozen=True)
class Vendor:
    """The limits of one account, from docs/reference/providers.md. Quotas are the highest documented ones."""

    name: str
    max_requests: int
    max_bytes: int
    page: int  # batches in a list call
    price_book: str
    model: str
    creates_an_hour: int | None = None
    most_tokens: int | None = None  # enqueued
    most_requests: int | None = None
    most_batches: int | None = None


VENDORS = (
    Vendor("OpenAI", 50_000, 200_000_000, 100, "openai", "gpt-5-nano", 2_000, most_tokens=15_000_000_000),
    Vendor("Anthropic", 100_000, 255_999_000, 1_000, "anthropic", "claude-haiku-4-5", 240_000, most_requests=500_000),
    Vendor("Bedrock", 50_000, 1_000_000_000, 1_000, "aws", "amazon.nova-micro-v1:0", most_batches=100),
    Vendor("Vertex AI", 200_000, 1_000_000_000, 100, "google", "gemini-2.5-flash-lite"),
)


@dataclass(frozen=True)
class Store:
    """List prices of an object store in USD."""

    name: str
    gb_month: float
    write: float
    read: float


STORES = (
    Store("S3 Standard, us-east-1", 0.023, 0.005 / 1_000, 0.0004 / 1_000),
    Store("Cloud Storage Standard, us-central1", 0.020, 0.005 / 1_000, 0.0004 / 1_000),
)
_OBJECTS_A_SHARD = ("requests.jsonl.lz4", "ids.lz4", "sent.zst", "raw.jsonl.zst", "results.parquet")
_READS_A_SHARD = 6  # requests and their ids to send and to collect, raw results, results


def tables(figures: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the lines of each table by the name of its marks in the page."""
    return {
        "shard": _shard_table(figures["shards"]),
        "ticks": _tick_table(figures["shards"]["ticks"]),
        "row": _row_table(figures["rows"]),
        "vendors": list(_vendor_table(figures["rows"])),
        "day": list(_day_table(figures)),
        "money": list(_money_table(figures)),
    }


def shard_tables(found: Mapping[str, Any]) -> str:
    """Return the tables of a shard's cost, as Markdown."""
    return "\n".join([*_shard_table(found), "", *_tick_table(found["ticks"])])


def written(page: str, figures: Mapping[str, Any]) -> str:
    """Return the page with its tables made from these figures."""
    for name, lines in tables(figures).items():
        before, begin, rest = page.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->")
        assert begin, name
        assert end, name
        page = "\n".join([before + begin, *lines, "", end + after])
    return page


def _shards(found: Mapping[str, Any]) -> int:
    size = found["size"]
    return int(size["partitions"] * size["shards"])


def _shard_table(found: Mapping[str, Any]) -> list[str]:
    shards, ledger = _shards(found), found["ledger"]
    steps = [found["send"], found["land"]]
    objects = {kind: of for kind, of in found["objects"].items() if kind in _OBJECTS_A_SHARD}

    def row(what: str, unit: str, *numbers: float) -> str:
        return f"| {what} | {unit} | {' | '.join(_plain(number) for number in numbers)} |"

    def each(name: str, factor: float = 1) -> list[float]:
        return [step[name] / shards * factor for step in steps] + [sum(s[name] for s in steps) / shards * factor]

    whole = [ledger["cpu_s"], ledger["wal_bytes"], sum(ledger["bytes"].values()), ledger["rows"]["event"]]
    cpu, wal, size, events = (one / shards for one in whole)
    of_shards = {name: sum(of[name] for of in objects.values()) / shards for name in ("objects", "bytes")}
    sent, landed = steps
    files, file_bytes = of_shards["objects"], of_shards["bytes"]
    rest = (
        f"With the ticks between, PostgreSQL took {_plain(cpu * 1e3)} ms a shard, and wrote {_plain(wal / 1e3)} KB of "
        f"its log. Each shard leaves {_plain(size / 1e3)} KB in the ledger, including indexes, with {_plain(events)} "
        f"events, and {_plain(files)} files of {_plain(file_bytes / 1e3)} KB together in the payload store. Four "
        f"workers planned and sent {_plain(shards / sent['wall_s'])} shards a second, with "
        f"{_plain(sent['writes'] / sent['wall_s'])} writes a second to the ledger. They materialized "
        f"{_plain(shards / landed['wall_s'])} shards a second."
    )
    return [
        "| A shard takes | | to plan and send | to collect and materialize | total |",
        "| --- | --- | ---: | ---: | ---: |",
        row("CPU of the worker", "ms", *each("cpu_s", 1_000)),
        row("CPU of PostgreSQL", "ms", *each("server_cpu_s", 1_000)),
        row("statements that read", "", *each("reads")),
        row("statements that write", "", *each("writes")),
        row("transactions of the worker", "", *each("transactions")),
        row("write-ahead log", "KB", *each("wal_bytes", 1e-3)),
        "",
        *textwrap.wrap(rest, 130),
    ]


def _tick_table(ticks: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = ["| Tick | Seconds | CPU s | Statements | Calls | Left for the next | Runs requested |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for one in ticks:
        statements = one["reads"] + one["writes"]
        lines.append(
            f"| {one['name']} | {one['seconds']:.1f} | {one['cpu_s']:.1f} | {statements:,} | {one['calls']:,} | "
            f"{one['left']:,} | {one['runs']} |"
        )
    return lines


def _row_table(rows: Mapping[str, Any]) -> list[str]:
    lines = ["| A row takes | " + " | ".join(f"{_size(size)} of text" for size in rows) + " |"]
    lines.append("| --- |" + " ---: |" * len(rows))

    def row(what: str, numbers: Iterable[float]) -> None:
        lines.append(f"| {what} | {' | '.join(_plain(number) for number in numbers)} |")

    for step in ("plan", "submit", "collect", "labels"):
        row(f"CPU of `{step}`, µs", (one["cpu_us"][step] for one in rows.values()))
    row("CPU in total, µs", (_cpu_us(one) for one in rows.values()))
    row("its line in the request file, bytes", (one["line_bytes"] for one in rows.values()))
    row("its reply in the result file, bytes", (one["reply_bytes"] for one in rows.values()))
    kinds = ("requests.jsonl.lz4", "raw.jsonl.zst", "results.parquet", "manifest.parquet", "ids.lz4")
    for name, kind in zip(("requests", "raw results", "results", "manifest", "known ids"), kinds, strict=True):
        row(f"{name}, stored, bytes", (one["stored_bytes"][kind] for one in rows.values()))
    row("labeled table (Parquet), bytes", (one["table_bytes"] for one in rows.values()))
    return lines


def _rows_a_shard(vendor: Vendor, line_bytes: float) -> int:
    return int(min(vendor.max_requests, vendor.max_bytes // line_bytes))


def _vendor_table(rows: Mapping[str, Any]) -> Iterable[str]:
    titles = ("Vendor", "Text", "Rows a shard", "Shards a day", "Creates an hour (most)", "Tokens a day")
    yield f"| {' | '.join(titles)} | Longest average duration of a batch |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for vendor in VENDORS:
        for size, one in rows.items():
            held = _rows_a_shard(vendor, one["line_bytes"])
            shards, tokens = ROWS_A_DAY / held, one["line_bytes"] / 4 * ROWS_A_DAY
            most = "" if vendor.creates_an_hour is None else f" ({vendor.creates_an_hour:,})"
            yield (
                f"| {vendor.name} | {_size(size)} | {held:,} | {shards:,.0f} | {shards / 24:,.0f}{most} | "
                f"{tokens / 1e9:,.0f} billion | {_longest(vendor, held, tokens)} |"
            )


def _longest(vendor: Vendor, rows_a_shard: int, tokens_a_day: float) -> str:
    """Return the longest average duration of batches at which the vendor's queue takes all rows (Little's law)."""
    if vendor.most_requests is not None:
        hours = vendor.most_requests / ROWS_A_DAY * 24
        return f"{_hours(hours)}: {vendor.most_requests:,} requests in its queue"
    if vendor.most_batches is not None:
        hours = vendor.most_batches * rows_a_shard / ROWS_A_DAY * 24
        return f"{_hours(hours)}: {vendor.most_batches:,} jobs at once"
    if vendor.most_tokens is not None:
        hours = vendor.most_tokens / tokens_a_day * 24
        return f"{_hours(hours)}: {vendor.most_tokens / 1e9:,.0f} billion tokens in its queue"
    return "limit not documented"


def _day_table(figures: Mapping[str, Any]) -> Iterable[str]:
    rows, found = figures["rows"], figures["shards"]
    shards_measured = _shards(found)
    yield "| A day of 100,000,000 rows, at OpenAI's limits | " + " | ".join(f"{_size(s)} of text" for s in rows) + " |"
    yield "| --- |" + " ---: |" * len(rows)

    def row(what: str, texts: Iterable[str]) -> str:
        return f"| {what} | {' | '.join(texts)} |"

    shards = [ROWS_A_DAY / _rows_a_shard(VENDORS[0], one["line_bytes"]) for one in rows.values()]
    cores = [_cores(one, count, found) for one, count in zip(rows.values(), shards, strict=True)]
    yield row("shards", (f"{count:,.0f}" for count in shards))
    yield row("cores of workers, on average", (f"{count:.2f}" for count in cores))
    yield row("uploaded, TB", (f"{one['line_bytes'] * ROWS_A_DAY / 1e12:.2f}" for one in rows.values()))
    yield row("uploaded, Mbit/s on average", (f"{_mbit(one['line_bytes']):,.0f}" for one in rows.values()))
    yield row("downloaded, Mbit/s on average", (f"{_mbit(one['reply_bytes']):,.0f}" for one in rows.values()))
    writes = (found["send"]["writes"] + found["land"]["writes"]) / shards_measured
    yield row("writes to the ledger a second, on average", (f"{count * writes / 86_400:.2f}" for count in shards))
    server = found["ledger"]["cpu_s"] / shards_measured
    yield row("share of one core of PostgreSQL", (f"{count * server / 86_400:.2%}" for count in shards))
    size = sum(found["ledger"]["bytes"].values()) / shards_measured
    yield row("ledger, GB a year", (f"{count * size * 365 / 1e9:.1f}" for count in shards))
    yield row("batches in flight, if each takes 24 hours", (f"{count:,.0f}" for count in shards))
    yield row(
        "list calls of a tick then, and their seconds",
        (f"{count / VENDORS[0].page:,.0f}; {count / VENDORS[0].page * CALL_SECONDS:.0f} s" for count in shards),
    )
    yield row("files in the payload store", (f"{_files(count):,.0f}" for count in shards))
    yield row("payload store, GB a day", (f"{_stored(one) * ROWS_A_DAY / 1e9:,.0f}" for one in rows.values()))
    yield row(
        f"of them raw results, GB in {KEPT_DAYS} days",
        (f"{one['stored_bytes']['raw.jsonl.zst'] * ROWS_A_DAY * KEPT_DAYS / 1e9:,.0f}" for one in rows.values()),
    )
    part = ROWS_A_DAY / PARTITIONS_A_DAY
    yield row(
        f"a partition of {PARTITIONS_A_DAY} a day: rows; table, MB; CPU s to materialize",
        (
            f"{part:,.0f}; {part * one['table_bytes'] / 1e6:,.0f}; "
            f"{part * (one['cpu_us']['collect'] + one['cpu_us']['labels']) / 1e6:,.0f}"
            for one in rows.values()
        ),
    )
    yield row("known ids in memory, if all were one partition, MB", (f"{ROWS_A_DAY * 4 / 1e6:,.0f}" for _ in rows))


def _money_table(figures: Mapping[str, Any]) -> Iterable[str]:
    rows, found = figures["rows"], figures["shards"]
    yield "| USD a month of 30 such days | " + " | ".join(f"{_size(size)} of text" for size in rows) + " |"
    yield "| --- |" + " ---: |" * len(rows)
    shards = [ROWS_A_DAY / _rows_a_shard(VENDORS[0], one["line_bytes"]) for one in rows.values()]
    for vendor in VENDORS:
        costs = (_labels_usd(vendor, one) for one in rows.values())
        cells = ("not known" if cost is None else f"{cost * 30:,.0f}" for cost in costs)
        yield f"| labels, {vendor.price_book}'s {vendor.model} in batches | {' | '.join(cells)} |"
    machines = [
        _cores(one, count, found) * 24 * 30 * CORE_HOUR_USD for one, count in zip(rows.values(), shards, strict=True)
    ]
    yield f"| workers, {CORE_HOUR_USD} a core-hour | {' | '.join(f'{usd:,.0f}' for usd in machines)} |"
    for store in STORES:
        kept = [_stored(one) * ROWS_A_DAY * KEPT_DAYS / 1e9 * store.gb_month for one in rows.values()]
        calls = [(_files(count) * store.write + count * _READS_A_SHARD * store.read) * 30 for count in shards]
        yield f"| {store.name}: {KEPT_DAYS} days of payloads | {' | '.join(f'{usd:,.0f}' for usd in kept)} |"
        yield f"| {store.name}: its requests | {' | '.join(f'{usd:,.2f}' for usd in calls)} |"


def _labels_usd(vendor: Vendor, one: Mapping[str, Any]) -> float | None:
    from dagster_llm_batch.core.pricing import tariff
    from dagster_llm_batch.types import Lane

    prices = tariff(vendor.price_book, vendor.model, PRICED_AT).of(Lane.BATCH)
    cost = prices.mean_usd(one["line_bytes"] / 4, one["output_tokens"])
    return None if cost is None else float(cost) * ROWS_A_DAY


def _files(shards: float) -> float:
    return shards * len(_OBJECTS_A_SHARD) + PARTITIONS_A_DAY * 3  # a manifest; labels and rejects


def _stored(one: Mapping[str, Any]) -> float:
    return float(sum(one["stored_bytes"].values()))


def _cpu_us(one: Mapping[str, Any]) -> float:
    return float(sum(one["cpu_us"].values()))


def _cores(one: Mapping[str, Any], shards: float, found: Mapping[str, Any]) -> float:
    """Return the cores for all rows and shards. A shard's share includes its ten rows again."""
    a_shard: float = (found["send"]["cpu_s"] + found["land"]["cpu_s"]) / _shards(found)
    return (_cpu_us(one) * 1e-6 * ROWS_A_DAY + shards * a_shard) / 86_400


def _mbit(bytes_a_row: float) -> float:
    return bytes_a_row * ROWS_A_DAY * 8 / 86_400 / 1e6


def _size(size: str) -> str:
    return f"{int(size) / 1_000:g} KB"


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.0f} minutes"


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def main(arguments: Sequence[str]) -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    if "--write" in arguments:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
        return
    for name, lines in tables(figures).items():
        print(f"{name}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
