"""See the package's docstring."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    again,
    backfill,
    chains,
    cores,
    dagster_run,
    latency,
    money,
    partitions,
    pipeline,
    replan,
    sensor,
    startup,
    writes,
)
from benchmarks.measure import ROOT
from benchmarks.scale import day, shards

PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "images" / "performance.png"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "parts",
        nargs="*",
        help="some of: pipeline, replan, chains, runs, cores, ledger, sensor, partitions, scale, latency, money, "
        "startup (default: all)",
    )
    parser.add_argument(
        "--keep", type=Path, help="a folder for the tables of the parts; the page is put together from it"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument(
        "--big-rows",
        type=int,
        nargs="*",
        default=[400_000, 1_000_000],
        help="once; of services without a floor the last",
    )
    parser.add_argument("--services", nargs="+", default=["openai", "anthropic", "bedrock", "vertex"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--run-rows", type=int, nargs="+", default=[100_000, 1_000_000], help="more than 100,000 once")
    parser.add_argument("--caps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shard-sizes", type=int, nargs="+", default=[100, 1_000, 10_000, 50_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--ledgers", nargs="+", default=list(sensor.LEDGERS))
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--growing", type=int, nargs="+", default=[1, 2, 30, 60, 120], help="days of a growing table")
    parser.add_argument("--rows-a-day", type=int, default=50)
    parser.add_argument("--scale-partitions", type=int, default=1_000, help="each of ten batches of ten rows")
    parser.add_argument("--inputs", type=Path, default=Path(tempfile.gettempdir()) / "dagster-llm-batch-benchmarks")
    options = parser.parse_args()

    keep = options.keep or Path(tempfile.mkdtemp())
    keep.mkdir(parents=True, exist_ok=True)
    # Those with a floor. The sensor and the runs of Dagster are measured with these alone, too.
    floors = [one for one in options.services if one in pipeline.FLOORS]

    def measured_pipeline() -> str:
        rows = list(pipeline.measure(options.services, options.rows, options.runs, options.inputs))
        clouds = [one for one in options.services if one not in floors]
        rows += pipeline.measure(floors, options.big_rows, 1, options.inputs)
        rows += pipeline.measure(clouds, options.big_rows[-1:], 1, options.inputs)
        rows.sort(key=lambda row: (options.services.index(row.service), row.rows))
        with tempfile.TemporaryDirectory() as folder:
            sizes = sorted({*options.rows, *options.big_rows})
            more = list(again.measure(floors, sizes, Path(folder), options.inputs))
        pipeline.plot(rows, more, keep / PLOT.name)
        return f"{pipeline.table(rows)}\n\n{_AGAIN}\n\n{again.table(more)}"

    parts: dict[str, tuple[str, Callable[[], str]]] = {
        "pipeline": (_PIPELINE, measured_pipeline),
        "replan": (_REPLAN, lambda: replan.table(options.run_rows, options.runs, options.inputs)),
        "chains": (_CHAINS, lambda: chains.table(options.growing, options.rows_a_day, options.runs)),
        "runs": (_RUNS, lambda: dagster_run.table(floors, options.run_rows, options.runs, options.inputs)),
        "cores": (_CORES, lambda: cores.table(options.run_rows[0], options.caps, options.inputs)),
        "ledger": (_LEDGER, lambda: writes.table(options.rows, options.shard_sizes, options.inputs)),
        "sensor": (_SENSOR, lambda: sensor.table(floors, options.batches, options.ledgers)),
        "partitions": (
            _PARTITIONS,
            lambda: f"{partitions.table(options.days)}\n\n{_BACKFILL}\n\n{backfill.table(options.days)}",
        ),
        "scale": (_SCALE, lambda: day.shard_tables(shards.run(shards.Size(partitions=options.scale_partitions)))),
        "latency": (_LATENCY, lambda: latency.table([1, options.days])),
        "money": (_MONEY, money.table),
        "startup": (_STARTUP, startup.table),
    }
    if unknown := sorted(set(options.parts) - set(parts)):
        parser.error(f"there is no part {', '.join(unknown)}; the parts are {', '.join(parts)}")
    for name in options.parts or parts:
        text, make = parts[name]
        told = f"{text}\n\n{make()}\n\n{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC; load {os.getloadavg()[1]:.0f}.\n"
        (keep / f"{name}.md").write_text(told, encoding="utf-8")
        print(told, flush=True)
    missing = [name for name in parts if not (keep / f"{name}.md").exists()]
    if missing or (options.parts and options.keep is None):
        return
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    written = [(keep / f"{name}.md").read_text(encoding="utf-8") for name in parts]
    PAGE.write_text("\n".join([_HEAD.format(machine=machine, runs=options.runs), *written]), encoding="utf-8")
    shutil.copyfile(keep / PLOT.name, PLOT)
    print(f"written: {PAGE}")


_HEAD = """# Performance

Written by `python -m benchmarks` ({machine}; runs of each size: {runs}; from 400,000 rows on once). Compare ratios,
not seconds: floor and package take turns on the same machine, each in a process of its own, against a mock in another
one. Below each table stand its time and how many processes wanted the machine's cores then, over five minutes: it is of
the code of that time. The floor is `benchmarks/floor.py`. Its times and ours leave out imports, which
[Start-up](#start-up) has; peaks of memory hold them.
"""
_PIPELINE = """## From rows to labels

Rows of about 1 KB from Parquet to labeled Parquet, replies checked against a pydantic model. The floor does that and no
more, by pydantic; the package, which reads replies of so plain a model by msgspec and leaves the rest to pydantic, also
keeps a ledger, request files, raw results, reconciliation, provenance columns and prices. CPU is that of the client
process from the end of its imports to its last row; the median of the runs. Imports are on both sides also those that
else come with the first call (the service's SDK, the HTTP client, the prices' data), and one garbage collection of
what they left. Rows/s are by the clock, and so also the mock's, which shares the cores. Both run without pandas, which
neither needs: where it is installed, pyarrow imports it, for 0.3 s and 60 MB more. Arrow allocates as it does by
default; with `ARROW_DEFAULT_MEMORY_POOL=jemalloc`, where it was built with that, the package took 25 MB and 3 to 6 % of
the CPU time less in a trial.

No row stays in memory. Memory grows with rows only until four batches are under way at once: up to 200,000 requests of
OpenAI, 400,000 of Anthropic.

![CPU time by number of rows, package and floor](images/performance.png)"""
_AGAIN = """What a row more takes, on the right of the picture, is measured in a process that has labeled before: data
sets of these sizes one after another, medians of up to five, less one of a single row. A process' first row is above
all compiling SQL and opening the SDK's client, a data set's first the ledger's transactions, a batch and its files."""
_REPLAN = """## The same rows again

Rows that are all answered are planned again, in a process of its own: what has not changed is neither rendered nor
stored again. Beside it a process that does nothing but read the rows. CPU is the least of the runs."""
_CHAINS = """## A table that grows

Each day some rows more, and the whole table is labeled anew: earlier days' answers are reused. Each of these days is
planned, sent, collected and labeled in a process of its own, the days between them in one. CPU after imports, the least
of the runs. What is told for each earlier day is what a day takes more than the first one, its rows included."""
_RUNS = """## Inside a Dagster run

The same rows through `llm_batch_assets` in `wait` mode: one run in its own process submits, waits, collects and lands
labels and rejects as Parquet, with metadata, previews and checks; they stream to the IO manager (`frame="batches"`).
Beside it a run of three assets and three checks that do nothing: what Dagster takes for itself. CPU seconds after the
imports, and without pandas, as above."""
_CORES = """## Several shards at once

The rows in eight shards, through OpenAI's mock over connections of 10 MB a second. Several batches are uploaded at
once, and their results downloaded while those that came before are read: `LLMBatchResource(transfers_at_once=…)`, 4
by default. Batches of a queue with a limit are sent one after the other, since its room is counted before each. Threads
make reading hardly faster, since most of it is Python, which runs in one at a time: who wants more cores for that gives
`workers` to the dataset, which reads and encodes in processes of Spark or Ray. In brackets: CPU seconds by
wall seconds."""
_LEDGER = """## What the ledger writes

From plan to labels, against the mock of OpenAI: `INSERT`, `UPDATE` and `DELETE` statements, and the rows that they
touched. It grows with shards (a batch and its results), and not with rows."""
_SENSOR = """## A tick of the sensor

Each batch is of a partition of its own, and was sent an hour ago: its turn to be polled comes every six minutes. Each
call takes the vendor 0.2 seconds. First all are due, then none, then all have ended; a tick polls for 25 seconds at
most and leaves the rest, those polled least recently first, to the next one, half a minute later. Runs are asked for
twenty at a time, each with up to a hundred partitions; launching one takes Dagster about half a second, which is not in
the figures. PostgreSQL is a server on the same machine. State is in the ledger: the cursor stays empty.

Vertex AI and Gemini give their lists page by page from the top, Bedrock by a thousand. What no page shows is read by a
call of its own, at most 100 for each thousand batches at a tick: that is for the hundreds of jobs that their quotas
allow, and not for ten thousand."""
_PARTITIONS = """## A year in one run

Five rows a day, through the engine against the emulator."""
_BACKFILL = """And as Dagster's runs, one that submits and one that lands: for all days together, as a backfill does by
default, or for each. The runs are executed in one process: a launcher that starts a process for each adds its
seconds."""
_SCALE = """## Many batches on one ledger

Four processes, OpenAI's mock and one PostgreSQL: they plan and send partitions of ten batches of ten rows, and land
them. One of them is killed in each half. No row is lost or billed twice. What that means for a hundred million rows a
day is in [Past one machine](design/scale.md)."""
_LATENCY = """## From ended to landed

A live Dagster on SQLite: a daemon with its sensors, which tick every 30 seconds, and a process for each run. The batch
of all partitions ends between two ticks; one run lands them. Beside it a run of as many partitions that does nothing,
with the same materializations and verdicts, which a sensor asks for as soon as a file is there."""
_MONEY = """## Money

A thousand rows, of which a fifth repeat another one's text, below a shared prefix of 2,000 tokens. Replies are
simulated, prices are those of the bundled price book. The emulator counts cached tokens by the vendors' documented
rules, every possible hit: OpenAI caches by itself, Anthropic what `Prompt(cache_prefix=True)` marks, for an hour.
Vendors promise fewer hits in batches."""
_STARTUP = """## Start-up

Measured with the package's bytecode in place, as pip and uv write it when they install, or Python at the first start.
Where there is none (`PYTHONDONTWRITEBYTECODE` over a checkout), each start compiles the package anew."""

if __name__ == "__main__":
    main()
