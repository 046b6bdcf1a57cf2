"""The page of measurements, docs/performance.md, with a section for each part, and the README's quote from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from benchmarks.measure import ROOT

__all__ = ["BACKFILL", "OTHERS", "PAGE", "PLOT", "README", "TEXTS", "page_with", "readme_with"]

PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "images" / "performance.png"
README = ROOT / "README.md"

_HEAD = """# Performance

For plain rows, the package takes two to three times the CPU of a client written by hand for the same rows: 10 to 30
microseconds more per row. Its memory stops growing once four batches are in flight, and the sensor polls thousands of
batches in ticks of seconds. A batch takes minutes to hours, so this overhead matters only for many millions of rows.

Written by `python -m benchmarks` ({machine}). Compare ratios, not seconds. Each section ends with the time of its run
and the machine's load over five minutes; its figures belong to the code of that time.
"""
_CLAIM = re.compile(r"less than \d+ MB, imports included \(\[[^\]]*\]")
_MILLION = 1_000_000


def page_with(page: str, sections: Mapping[str, str], machine: str) -> str:
    """Return the page with these sections, by part. Sections of other parts stay unchanged, with their dates."""
    kept = {f"## {text.partition(chr(10))[0]}": text for text in page.split("\n## ")[1:]}
    written = [_HEAD.format(machine=machine)]
    for part, text in TEXTS.items():
        title = text.partition("\n")[0]
        if part in sections:
            written.append(sections[part])
        elif title in kept:
            written.append(f"## {kept[title].rstrip()}\n")
    return "\n".join(written)


def readme_with(readme: str, page: str) -> str:
    """Return the README with the page's figure of memory for a million rows, rounded up to 10 MB."""
    section = page.partition(TEXTS["shapes"].partition("\n")[0])[2].partition("\n## ")[0]
    peaks = [float(row["Peak MB"]) for row in _rows(section) if row["Rows"] == f"{_MILLION:,}"]
    date = re.search(r"^(\S+) \S+ UTC; load", section, re.MULTILINE)
    cores = re.search(r"\((\d+) cores", page)
    if not peaks or date is None or cores is None:
        raise ValueError("the page's first section has no row of a million rows, no date or no number of cores")
    most = int(max(peaks) // 10 + 1) * 10
    said = f"less than {most} MB, imports included ([{date[1]}, {cores[1]} cores]"
    readme, count = _CLAIM.subn(said, readme)
    if count != 1:
        raise ValueError(f"the README says {count} times how much memory a million rows take: once is wanted")
    return readme


def _rows(section: str) -> Iterable[dict[str, str]]:
    """Yield the rows of the section's first table by the titles of its columns."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in _first_table(section)]
    titles, _, *rows = lines
    return (dict(zip(titles, row, strict=True)) for row in rows)


def _first_table(section: str) -> list[str]:
    found = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    if found is None:
        raise ValueError("the page's first section has no table")
    return found[0].splitlines()


OTHERS = """

*floor_fast* is not part of this repository. Others wrote it as a reference for this package; it does the work of the
floor, always with OpenAI's API. For plain rows and duplicates it stores the same files; for other shapes it is a loop
with pydantic that stores no files."""
"""The text for the first section, with other floors."""

BACKFILL = """The second table uses Dagster's runs, one that submits and one that materializes: for all days
together, as in a default backfill, or for each of some days. The runs are executed in one process; a launcher that
starts a process for each run adds its seconds."""

TEXTS = {
    "shapes": """## From rows to labels

Rows go from a Parquet file to labels in another file, against a mock of the service in a separate process. Package and
floor take turns, each run in a new process. Figures are medians of {runs} runs; from 200,000 rows on, of {big_runs}.

**The floor** is `benchmarks/floor.py`, a client written by hand for this one case. It splices the constant parts of a
request, reads and checks replies with msgspec into columns, and stores request files and raw results compressed, like
the package. It has no ledger, reconciliation, retry, price or provenance, and stops at an error. Bedrock and Vertex AI
are compared with OpenAI's floor. The floor sends duplicates like other rows. If unchanged rows are planned again, the
floor only reads them.{others}

*CPU s* and *µs a row* are **without imports**: the client process from the end of its imports to its last row. On both
sides imports include those that would otherwise come with the first call (the service's SDK, the HTTP client, the
prices' data), and one garbage collection after them. *Process, CPU s* and *Peak MB* are **with imports**, for the whole
process from start to end. The package imports the vendor's SDK, and the floor a bare HTTP client. Both run without
pandas and aiohttp. If pandas is installed, pyarrow imports it (60 MB); if aiohttp is installed, as with the extras `s3`
and `gcs`, the SDKs of OpenAI and Anthropic import it (9 MB). Arrow chooses its allocator; with another one a run uses
less memory ([how](how-to/embed.md#kubernetes)).

Rows do not stay in memory. Memory grows with rows only until four batches are in flight: up to 200,000 requests of
OpenAI, 400,000 of Anthropic.

![CPU a row and as a multiple of the floor, for each service and shape](images/performance.png)""",
    "chains": """## A table that grows

Each day adds some rows, and the whole table is labeled again, with the answers of earlier days reused. Each measured
day is planned, sent, collected and labeled in a new process; the days between them share one. CPU is without
imports, and is the least of the runs; peaks include imports. The figure for each earlier day is the extra time of a
later day over the first, divided by the number of earlier days. It includes the rows of these days.""",
    "parts": """## Long texts in parts

Texts are split into their sections. Each part is a request, and the labels of the parts are gathered into one row for
each text ([how](how-to/label-long-texts.md)). They are compared with as many plain rows as parts, each in a new
process; both ask about the same sentences. Rows and their texts are made during the measurement. CPU is without
imports, and is the least of the runs; peaks include imports.""",
    "copies": """## Near copies

The first table has the costs of grouping texts of thirty words ([how](how-to/share-near-copies.md)). A third of the
texts are near copies of another, from which they differ in one word. The second table has a table of which 30 % of the
rows are such copies, planned, sent and labeled against OpenAI's mock, without and with `Near(error=0.02)`. The mock
gives one copy in 200 another label than its leader. *Requests of round 1* are those that `plan` shows. Rows and their
texts are made during the measurement. CPU is without imports; peaks include imports. `python -m benchmarks copies`
measures this section alone.""",
    "runs": """## Inside a Dagster run

The same rows go through `llm_batch_assets` in `wait` mode. One run in its own process submits, waits, collects, and
materializes labels and rejects as Parquet, with metadata, previews and checks. The tables stream to the IO manager
(`frame="batches"`). The table compares it with a run of three empty assets and three empty checks, which is
Dagster's own share, and with the floor of the first section. CPU seconds are without imports, peaks with them.""",
    "cores": """## Several shards at once

The rows are in eight shards and go through OpenAI's mock over connections of 10 MB a second. Several batches are
uploaded at once, and results are downloaded while earlier results are read: `LLMBatchResource(transfers_at_once=…)`,
4 by default. Batches of a queue with a limit are sent one after another, because the free space is counted before
each. Threads hardly speed up reading, because most of it is Python, which runs one thread at a time. To use more
cores for it, give the dataset `workers`, which read and encode in processes of Spark or Ray. In brackets: CPU
seconds by wall seconds.""",
    "ledger": """## What the ledger writes

The table counts `INSERT`, `UPDATE` and `DELETE` statements, and the rows that they touched, from plan to labels,
against the mock of OpenAI. The counts grow with shards (a batch and its results), and not with rows.""",
    "sensor": """## A tick of the sensor

Each batch belongs to a different partition, or the partitions of a year share two batches. All were sent an hour ago,
so they are polled every six minutes. Each call takes the vendor 0.2 seconds. The table has three cases: all batches
are due, none is due, and all have ended. A
tick polls for 25 seconds at most. It starts with the batches that were polled least recently, and leaves the rest to
the next tick, half a minute later. The sensor requests twenty runs at a time, each with up to a hundred partitions.
Dagster takes about half a second to launch a run, which is not in the figures. PostgreSQL is a server on the same
machine. The state is in the ledger: the cursor stays empty.

Vertex AI and Gemini return their lists page by page from the top, Bedrock by a thousand. A batch that is not on
these pages is read with a separate call, at most 100 calls per thousand batches and tick. This suits the hundreds of
jobs that their quotas allow, not ten thousand.""",
    "partitions": """## A year in one run

Each day has five rows. The first table uses the engine against the emulator.""",
    "scale": """## Many batches on one ledger

Four processes with OpenAI's mock and one PostgreSQL plan and send {scale_partitions:,} partitions of ten batches of ten
rows, and materialize their labels. One process is killed in each half. All rows are labeled once and billed once.
[Past one machine](design/scale.md) shows the consequences for a hundred million rows a day.""",
    "latency": """## From the end of a batch to labels

A live Dagster on SQLite has a daemon with sensors, which tick every 30 seconds, and a process for each run. The
batch of all partitions ends between two ticks; one run materializes them. It is compared with an empty run of the
same number of partitions, materializations and check results, which a sensor requests as soon as a file exists. The
empty run looks up the target of its check results per partition, like Dagster's own checks; the package looks it up
once for many partitions. Each row is one measurement: if the machine's speed changes in between, so does the
difference of two runs. The last column is the time from the end to the last label, minus one interval of the sensor
and the empty run. It includes the start of a process, which many partitions share.""",
    "money": """## Money

There are a thousand rows after a shared prefix of 2,000 tokens; a fifth of them repeat the text of another row. Replies
are simulated, and prices come from the bundled price book. The emulator counts every possible cache hit by the vendors'
documented rules. OpenAI caches automatically; Anthropic caches the part that `Prompt(cache_prefix=True)` marks, for an
hour. Vendors promise fewer hits in batches.""",
    "startup": """## Start-up

The package's bytecode exists before the measurement: pip and uv write it at install, or Python at the first start. In a
checkout with `PYTHONDONTWRITEBYTECODE`, each start compiles the package again.

The figures are for whole processes, including imports and the end of Python. *Beyond* is the extra time of ten rows
over the import of the vendor's SDK alone. In a Dagster run, it is the extra time over that import and a run of empty
assets, in a process without this package.""",
}
"""The texts above the tables of each part, in the order of the page."""
