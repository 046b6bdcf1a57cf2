"""10,000 long texts in five parts each, and as many plain rows as parts: processor time and memory of both.

python -m benchmarks.parts
python -m benchmarks.parts 1000

The first command measures each in separate processes, and prints a table. The second one takes 1,000 texts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks import package
from benchmarks.measure import Cost, Work, child, mock
from dagster_llm_batch.core.gather import Gather, Gatherer
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.split import Split, split_rows
from dagster_llm_batch.engine import Labeling

_SERVICE = "openai"
_PARTS = 5
_KEEP = ("id", "part", "parts", "part_start")


def main(folder: str, addresses: str, kind: str, count: str) -> None:
    """Label `count` texts in parts and gather them, or as many plain rows as they have parts."""
    engine = package.engine(_SERVICE, Path(folder), json.loads(addresses))
    prompt = Prompt(user="#ROW:{{ row.row }}#\n{{ text }}")
    are_parts = kind == "parts"
    definition = Labeling(
        asset=kind,
        model=package.MODELS[_SERVICE],
        key="part_key" if are_parts else "id",
        keep=_KEEP if are_parts else (),
        prompt=prompt,
    )
    texts = int(count)
    work = Work()
    rows = split_rows(_long(texts), Split("text", tokens=200), key="id") if are_parts else _plain(texts * _PARTS)
    submission_id = engine.plan(definition, rows).submission_id
    while not engine.advance(definition, submission_id).is_settled:
        pass
    parts = list(engine.label_batches(definition, submission_id, run_id="benchmark"))
    labels, rejects = (
        pa.concat_tables(tables) for tables in zip(*((part.labels, part.rejects) for part in parts), strict=True)
    )
    if len(labels) != texts * _PARTS:
        raise RuntimeError(f"{len(labels)} labels of {texts * _PARTS} {kind}")
    labeled_s = work.cpu_s()
    if are_parts:
        gatherer = Gatherer(Gather("concat"), "id", (), definition.reader.schema, None)
        read = [labels.select(gatherer.read), rejects]
        # The asset reads stored tables, and nothing else has them in memory.
        del parts, labels, rejects
        gathered, left = gatherer.gather(read.pop(0), read.pop())
        if (len(gathered), len(left)) != (texts, 0):
            raise RuntimeError(f"{len(gathered)} gathered labels and {len(left)} rejects of {texts} texts")
    work.report(gather_s=work.cpu_s() - labeled_s)


def _long(texts: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, texts, 1_000):
        numbers = range(start, min(start + 1_000, texts))
        bodies = [
            "".join(f"# Part {part}\n{_text(number * _PARTS + part)}\n" for part in range(_PARTS)) for number in numbers
        ]
        yield pa.record_batch({"id": [f"r{number}" for number in numbers], "row": list(numbers), "text": bodies})


def _plain(rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, 5_000):
        numbers = range(start, min(start + 5_000, rows))
        texts = [_text(number) for number in numbers]
        yield pa.record_batch({"id": [f"r{number}" for number in numbers], "row": list(numbers), "text": texts})


def _text(number: int) -> str:
    return f"ticket {number} is about a chair that came without its legs"


def table(texts: int, runs: int) -> str:
    """Return both measurements as a table in Markdown. They take turns, and a row shows the cheapest of its runs."""
    best: dict[str, Cost] = {}
    for _ in range(runs):
        for kind in ("plain", "parts"):
            with tempfile.TemporaryDirectory() as folder, mock() as addresses:
                cost = child("benchmarks.parts", folder, json.dumps(addresses), kind, texts)
            best[kind] = min(best.get(kind, cost), cost, key=lambda one: one.work_cpu_s)
    shown = {"plain": f"{texts * _PARTS:,} plain rows", "parts": f"{texts:,} texts of {_PARTS} parts, gathered"}
    lines = ["| Rows | Requests | CPU s | Of it to gather, s | Peak MB |", "| --- |" + " ---: |" * 4]
    for kind, cost in best.items():
        times = f"{cost.work_cpu_s:.2f} | {cost.said['gather_s']:.2f}"
        lines.append(f"| {shown[kind]} | {texts * _PARTS:,} | {times} | {cost.peak_mb:.0f} |")
    ratio = best["parts"].work_cpu_s / best["plain"].work_cpu_s
    return "\n".join([*lines, "", f"Parts take {ratio:.2f} times the CPU of plain rows."])


if __name__ == "__main__":
    # A child has four arguments.
    if len(sys.argv) > 2:
        main(*sys.argv[1:])
    else:
        print(table(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, runs=3))
