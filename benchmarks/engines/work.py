"""The workload of all engines, imported in each engine's environment and workers. Needs the standard library and VADER.

Each labeled batch is one line in a log that survives its process, with process id, time and rows.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

BATCH = 200
WORKERS = 2
SMALL_JOBS = 4
SMALL_ROWS = 100


@cache
def _lexicon() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def label(texts: Sequence[str]) -> list[str]:
    """Return a label for each text. If DLB_BENCH_CHEAP is set, labels are almost free."""
    if os.environ.get("DLB_BENCH_CHEAP"):
        return ["long" if len(text) > 80 else "short" for text in texts]
    scores = [_lexicon().polarity_scores(text)["compound"] for text in texts]
    return ["positive" if score >= 0.05 else "negative" if score <= -0.05 else "neutral" for score in scores]


def label_and_log(ids: Sequence[int], texts: Sequence[str]) -> list[str]:
    """Label, and write the batch into the log at DLB_BENCH_LOG. Most batches have consecutive row numbers."""
    labels = label(texts)
    line = json.dumps({"pid": os.getpid(), "at": time.time(), "ids": _ranges(ids)}) + "\n"
    descriptor = os.open(os.environ["DLB_BENCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return labels


def _ranges(ids: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for one in map(int, ids):
        if found and found[-1][1] + 1 == one:
            found[-1][1] = one
        else:
            found.append([one, one])
    return found


def say(**facts: object) -> None:
    """Report to the measuring process."""
    print("BENCH " + json.dumps({"at": time.time(), **facts}), flush=True)


def places() -> tuple[str, str, str, bool]:
    """Return the folders of input, small input and output, and whether to time small jobs after the large one."""
    source, small, target, latency = sys.argv[1:5]
    return source, small, target, latency == "latency"


def timed(job: Callable[[int], None]) -> None:
    """Time small jobs on the warm engine; the first does not count."""
    seconds = []
    for number in range(SMALL_JOBS):
        began = time.perf_counter()
        job(number)
        seconds.append(time.perf_counter() - began)
    say(phase="latency", seconds=seconds[1:])


def read(folder: str) -> list[dict[str, Any]]:
    """Read all rows of a folder of JSON lines."""
    return [json.loads(line) for path in sorted(Path(folder).glob("*.json")) for line in path.open(encoding="utf-8")]
