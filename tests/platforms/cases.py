"""Platforms that failed once, each with the fewest differences from the plain one, and with the problem it had."""

from __future__ import annotations

__all__ = ["CASES", "REFUSED"]

CASES: dict[str, str] = {
    "an alert sensor for a sensor of another name was refused": "datasets=1 sensors=each extras=all",
    "a judge failed on a partition without rows, and rows that are all empty failed a coverage of 0": (
        "datasets=1 evaluation=rubric evaluated=apart a.partitions=berlin_hourly a.content=blank"
    ),
    "skew failed on a partition in which every row was rejected": (
        "datasets=1 io=hive evaluation=skew a.partitions=hourly a.content=refused a.frame=pandas"
    ),
    "a partition without rows was refused, since no rows have no urgent column": (
        "datasets=1 a.partitions=berlin_hourly a.rule=urgent"
    ),
    "labels of a dynamic dimension were paid for and did not land in a database, and plan could not read their rows": (
        "datasets=1 io=duckdb a.partitions=multi_dynamic a.rows=upstream a.frame=pandas"
    ),
    "in a run of a daily dataset, one without partitions was asked and paid for once for each day": (
        "runs=together a.partitions=daily"
    ),
    "a run over days in mode wait landed none of them, and another one waited behind them without end": (
        "queue=requests a.partitions=weekdays a.response=moderation a.mode=wait a.content=all_refused "
        "b.vendor=command b.mode=wait b.rule=fallback b.content=all_refused"
    ),
    "a column without a value had no type in a database, which took no value of the next partition": (
        "io=duckdb face=yaml evaluation=drift evaluated=apart a.partitions=multi a.frame=pandas b.frame=pandas"
    ),
}

REFUSED: dict[str, str] = {
    "datasets=1 a.vendor=azure a.response=embedding": "embeddings",
    "datasets=1 a.vendor=groq a.response=moderation": "moderation",
    "datasets=1 a.response=text a.rule=cascade": "Cascade.target",
    "datasets=1 evaluation=pairwise a.partitions=daily": "two or more",
    "datasets=1 evaluation=drift": "has no partitions",
    "datasets=1 evaluation=annotation a.response=embedding": "has embeddings",
    "datasets=1 evaluation=student a.response=text": "topic",
}
"""Platforms that cannot work, with a word of the reason: definitions do not load, or `doctor` has a problem."""
