"""The page of figures, docs/performance.md: a section a part, and what the README quotes of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from benchmarks.measure import ROOT

__all__ = ["BACKFILL", "OTHERS", "PAGE", "PLOT", "README", "TEXTS", "page_with", "readme_with"]

PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "images" / "performance.png"
README = ROOT / "README.md"

_HEAD = """# Performance

Written by `python -m benchmarks` ({machine}). Compare ratios, not seconds. Below each section stand the
time of its run and the machine's load over five minutes: its figures are of the code of that time.
"""
_CLAIM = re.compile(r"less than \d+ MB, imports included \(\[[^\]]*\]")
_MILLION = 1_000_000


def page_with(page: str, sections: Mapping[str, str], machine: str) -> str:
    """Return the page with these sections, by part; those of other parts stay as they are, dates included."""
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
    """Return the README with what it says of memory as the page has it: of a million rows, rounded up to ten MB."""
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

*floor_fast* is no part of this repository: it does what the floor does, always with OpenAI's API, and was written by
others to measure this package against. For plain rows and duplicates it keeps its files as the floor does; for other
shapes it is a loop by pydantic that keeps none."""
"""Of the first section, where there are other floors."""

BACKFILL = """And as Dagster's runs, one that submits and one that lands: for all days together, as a backfill does by
default, or for each of some. The runs are executed in one process: a launcher that starts a process for each adds its
seconds."""

TEXTS = {
    "shapes": """## From rows to labels

Rows from a Parquet file to labels in another, against a mock of the service in a process of its own. Package and floor
take turns, each run in a process of its own. Figures are medians of {runs} runs; from 200,000 rows on, of {big_runs}.

**The floor** is `benchmarks/floor.py`, a client written by hand for this one case: it splices the constant parts of a
request, reads and checks replies by msgspec into columns, and keeps request files and raw results compressed, as the
package does. It has no ledger, reconciliation, retry, price or provenance, and an error ends it. Bedrock and Vertex AI
stand beside the floor of OpenAI. It sends duplicates like other rows. Where rows are planned again, of which
nothing has changed, the floor only reads them.{others}

**Without imports** are *CPU s* and *µs a row*: the client process from the end of its imports to its last row. On both
sides imports include those that would otherwise come with the first call (the service's SDK, the HTTP client, the
prices' data), and one garbage collection of what they left. **With imports** are *Process, CPU s*, which is all that
the process took from its start to its end, and *Peak MB*. The package imports the vendor's SDK, and the floor a bare
HTTP client. Neither needs pandas nor aiohttp, and both run without: where pandas is installed, pyarrow imports it (60
MB), and where aiohttp is, as with the extras `s3` and `gcs`, the SDKs of OpenAI and Anthropic do (9 MB). Arrow's
allocator is its own choice; with another one a run takes less ([how](how-to/embed.md#kubernetes)).

No row stays in memory. Memory grows with rows only until four batches are under way at once: up to 200,000 requests of
OpenAI, 400,000 of Anthropic.

![CPU a row and as a multiple of the floor, for each service and shape](images/performance.png)""",
    "chains": """## A table that grows

Each day some rows more, and the whole table is labeled anew: earlier days' answers are reused. Each of these days is
planned, sent, collected and labeled in a process of its own, the days between them in one. CPU is without imports, and
the least of the runs; peaks hold imports. The figure for each earlier day is what a later
day takes beyond the first, divided by the days before it; the rows that came with them are in it.""",
    "runs": """## Inside a Dagster run

The same rows through `llm_batch_assets` in `wait` mode: one run in its own process submits, waits, collects and lands
labels and rejects as Parquet, with metadata, previews and checks; they stream to the IO manager (`frame="batches"`).
Beside it a run of three assets and three checks that do nothing: what Dagster takes for itself; and the floor, as
above. CPU seconds are without imports, peaks with them.""",
    "cores": """## Several shards at once

The rows in eight shards, through OpenAI's mock over connections of 10 MB a second. Several batches are uploaded at
once, and their results downloaded while those that came before are read: `LLMBatchResource(transfers_at_once=…)`, 4
by default. Batches of a queue with a limit are sent one after the other, since its room is counted before each. Threads
hardly speed up reading, since most of it is Python, which runs one thread at a time. To use more cores for that, give
the dataset `workers`, which read and encode in processes of Spark or Ray. In brackets: CPU seconds by wall seconds.""",
    "ledger": """## What the ledger writes

From plan to labels, against the mock of OpenAI: `INSERT`, `UPDATE` and `DELETE` statements, and the rows that they
touched. It grows with shards (a batch and its results), and not with rows.""",
    "sensor": """## A tick of the sensor

Each batch is of a partition of its own, and was sent an hour ago: its turn to be polled comes every six minutes. Each
call takes the vendor 0.2 seconds. First all are due, then none, then all have ended; a tick polls for 25 seconds at
most and leaves the rest, those polled least recently first, to the next one, half a minute later. Runs are asked for
twenty at a time, each with up to a hundred partitions; launching one takes Dagster about half a second, which is not in
the figures. PostgreSQL is a server on the same machine. State is in the ledger: the cursor stays empty.

Vertex AI and Gemini give their lists page by page from the top, Bedrock by a thousand. What no page shows is read by a
call of its own, at most 100 for each thousand batches at a tick: that is for the hundreds of jobs that their quotas
allow, and not for ten thousand.""",
    "partitions": """## A year in one run

Five rows a day, through the engine against the emulator.""",
    "scale": """## Many batches on one ledger

Four processes, OpenAI's mock and one PostgreSQL: they plan and send {scale_partitions:,} partitions of ten batches of
ten rows, and land them. One of them is killed in each half. No row is lost or billed twice. What that means for a
hundred million rows a day is in [Past one machine](design/scale.md).""",
    "latency": """## From ended to landed

A live Dagster on SQLite: a daemon with its sensors, which tick every 30 seconds, and a process for each run. The batch
of all partitions ends between two ticks; one run lands them. Beside it a run of as many partitions that does nothing,
with the same materializations and verdicts, which a sensor asks for as soon as a file is there. It asks Dagster what
the verdicts on each partition speak of, as Dagster's own do; the package asks once for many partitions.
Each row is one measurement: where the machine's speed changes meanwhile, the difference of two runs swings with it.
The last column is the time from the end to the last label, less one interval of the sensor and the empty run; the start
of a process is in it, which one partition bears alone and many share.""",
    "money": """## Money

A thousand rows, of which a fifth repeat another one's text, below a shared prefix of 2,000 tokens. Replies are
simulated, prices are those of the bundled price book. The emulator counts cached tokens by the vendors' documented
rules, every possible hit: OpenAI caches by itself, Anthropic what `Prompt(cache_prefix=True)` marks, for an hour.
Vendors promise fewer hits in batches.""",
    "startup": """## Start-up

Measured with the package's bytecode in place, as pip and uv write it when they install, or Python at the first start.
Where there is none (`PYTHONDONTWRITEBYTECODE` over a checkout), each start compiles the package anew.

All of these are whole processes: imports, and the end of Python, are in them. *Beyond* is what ten rows take more than
the import of the vendor's SDK alone; in a Dagster run, more than that import and a run of assets that do nothing, in a
process without this package.""",
}
"""What stands above the tables of each part, in the order of the page."""
