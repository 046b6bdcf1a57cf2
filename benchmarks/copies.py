"""Near copies: processor time, time and memory to group texts, and the requests that are sent for a table of them.

python -m benchmarks.copies
python -m benchmarks.copies 10000

The first command groups 100,000 and a million texts, a third of them near copies. Then it labels 100,000 rows with 30 %
near copies against OpenAI's mock, without and with `Near`. The second one takes 10,000 of each. Texts have thirty
words, and a near copy differs in one of them. The mock gives one near copy in 200 another label than its leader.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks import package
from benchmarks.inputs import ASK
from benchmarks.labels import FORMS
from benchmarks.measure import Cost, Work, child, mock
from benchmarks.mock.answers import label
from dagster_llm_batch.core.identity import make_requests
from dagster_llm_batch.core.near_copies import NearCopies
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.reuse import Near, Reuse
from dagster_llm_batch.engine import Labeling, Resend

_WORDS = [first + second + third for first in "bdfgk" for second in "aeiou" for third in ("ral", "mit", "son", "ver")]
_AT_ONCE, _EACH = 4_096, 30
_SERVICE = "openai"
_COPIES = (2, 5, 8)
"""The last digits of the rows that are near copies of the row before."""
_OTHERS_AMONG = 200


def group(count: str) -> None:
    """Group so many texts. Every third is a near copy of the one before."""
    work, texts = Work(), int(count)
    with tempfile.TemporaryFile() as file:
        copies = NearCopies(0.8, new_file=lambda: file)
        for start in range(0, texts, _AT_ONCE):
            some = [_text(number, is_copy=number % 3 == 2) for number in range(start, min(start + _AT_ONCE, texts))]
            copies.add([request.request_id for request in make_requests(None, some)], some, [b""] * len(some))
        added_s = work.cpu_s()
        found = len(copies.groups())
    if not 0.8 * texts / 3 < found < 1.1 * texts / 3:
        raise RuntimeError(f"{found} near copies among {texts} texts")
    work.report(add_s=added_s, found=found)


def send(folder: str, addresses: str, count: str, kind: str) -> None:
    """Label so many rows, three tenths of them near copies."""
    engine, rows = package.engine(_SERVICE, Path(folder), json.loads(addresses)), int(count)
    near = Near(text="text", target="label") if kind == "near" else None
    definition = Labeling(
        asset=kind,
        model=package.MODELS[_SERVICE],
        key="id",
        prompt=Prompt(user=ASK + "{{ text }}"),
        response=FORMS["label"],
        params={"max_tokens": 200},
        resend=Resend(reuse=Reuse(near=near)),
    )
    work = Work()
    submission_id = engine.plan(definition, _rows(rows)).submission_id
    planned_s = work.cpu_s()
    first = sum(shard.requests for shard in engine.status(submission_id).shards)
    while not (status := engine.advance(definition, submission_id)).is_settled:
        pass
    labels, wrong = 0, 0
    for part in engine.label_batches(definition, submission_id, run_id="benchmark"):
        labels += len(part.labels)
        own = [label(_row_number(int(key[1:])))["label"] for key in part.labels["id"].to_pylist()]
        wrong += sum(one != other for one, other in zip(own, part.labels["label"].to_pylist(), strict=True))
    if labels != rows:
        raise RuntimeError(f"{labels} labels of {rows} rows")
    work.report(planned_s=planned_s, first=first, sent=sum(shard.requests for shard in status.shards), wrong=wrong)


def _rows(rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, rows))
        texts = [f"#ROW:{_row_number(one)}# {_text(one, is_copy=one % 10 in _COPIES)}" for one in numbers]
        yield pa.record_batch({"id": [f"r{number}" for number in numbers], "text": texts})


def _row_number(number: int) -> int:
    """Return the number by which the mock labels a row. That of a near copy is its leader's, but of one in 200."""
    if number % 10 not in _COPIES:
        return number
    leader = number - 1
    if number // 10 * len(_COPIES) % _OTHERS_AMONG + _COPIES.index(number % 10) != 0:
        return leader
    return next(one for one in range(number, number + 100) if label(one)["label"] != label(leader)["label"])


def _text(number: int, *, is_copy: bool) -> str:
    draw = random.Random(number - 1 if is_copy else number)
    words = [f"{draw.choice(_WORDS)}{draw.choice(_WORDS)}" for _ in range(_EACH)]
    if is_copy:
        words[number % _EACH] = f"copy{number}"
    return " ".join(words)


def grouped_table(texts: Sequence[int]) -> str:
    """Return the costs of grouping as a table in Markdown."""
    lines = ["| Texts | Near copies | CPU s | Of it to add the texts, s | Seconds | Peak MB |", "|" + " ---: |" * 6]
    for count in texts:
        cost = child("benchmarks.copies", "group", count)
        times = f"{cost.work_cpu_s:.1f} | {cost.said['add_s']:.1f} | {cost.wall_s:.1f}"
        lines.append(f"| {count:,} | {cost.said['found']:,} | {times} | {cost.peak_mb:,.0f} |")
    return "\n".join(lines)


def sent_table(rows: int) -> str:
    """Return the requests and costs of a table, without and with near copies, as a table in Markdown."""
    found: dict[str, Cost] = {}
    for kind in ("plain", "near"):
        with tempfile.TemporaryDirectory() as folder, mock() as addresses:
            found[kind] = child("benchmarks.copies", "send", folder, json.dumps(addresses), rows, kind)
    titles = {"plain": "each row is asked", "near": "near copies share answers"}
    head = ["Rows", "", "Requests of round 1", "Requests in all", "Labels unlike the row's own", "Plan, CPU s", "CPU s"]
    lines = [f"| {' | '.join([*head, 'Peak MB'])} |", "| ---: | --- |" + " ---: |" * 6]
    for kind, cost in found.items():
        said = cost.said
        counts = f"{said['first']:,} | {said['sent']:,} | {said['wrong']:,}"
        times = f"{said['planned_s']:.1f} | {cost.work_cpu_s:.1f} | {cost.peak_mb:,.0f}"
        lines.append(f"| {rows:,} | {titles[kind]} | {counts} | {times} |")
    fewer = 1 - found["near"].said["sent"] / found["plain"].said["sent"]
    return "\n".join([*lines, "", f"With near copies, {fewer:.1%} fewer requests are sent."])


def table(texts: Sequence[int], rows: int) -> str:
    """Return both tables."""
    return f"{grouped_table(texts)}\n\n{sent_table(rows)}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["group"]:
        group(*sys.argv[2:])
    elif sys.argv[1:2] == ["send"]:
        send(*sys.argv[2:])
    else:
        wanted = int(sys.argv[1]) if sys.argv[1:] else None
        print(table([wanted or 100_000, *([] if wanted else [1_000_000])], wanted or 100_000))
