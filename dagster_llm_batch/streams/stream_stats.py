"""Statistics of a stream of results: throughput, latency, share of the LLM, agreement, cost. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from dagster_llm_batch.metrics.drawing import AMBER, BLUE, MUTED, bare, blank, headline, png
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.tables import figure, percent, rows_markdown
from dagster_llm_batch.streams.results import StreamResult
from dagster_llm_batch.text import money_text

__all__ = ["StreamStats", "compute_stream_stats", "latency_png", "stats_markdown"]

_ROWS_OF_A_PRICE = 1_000


@dataclass(frozen=True)
class StreamStats:
    """One lane of a stream (`by`: "student", "llm", "none"), or "all" of it.

    - `n`: results; `share`: of all. A message with several results counts by its last one.
    - `per_second`: results between the first and the last one; None for fewer than two.
    - `p50_ms`, `p99_ms`: from the message's own time to its result; None if all messages lack a time.
    - `n_student`, `student_agreement`: results of the LLM with an answer of the student, and how often both were equal.
      The student is not sure of such messages, so they are a hard choice.
    - `n_truth`, `truth_agreement`: results whose message is in the table given as truth, and how often the label is the
      same; weighted if gold has the weights of a sample.
    - `cost_usd`, `cost_per_1000_usd`: of the LLM; None if one cost is unknown.
    """

    by: str
    n: int
    share: float
    per_second: float | None
    p50_ms: float | None
    p99_ms: float | None
    n_student: int
    student_agreement: float | None
    n_truth: int
    truth_agreement: float | None
    cost_usd: Decimal | None
    cost_per_1000_usd: Decimal | None


def compute_stream_stats(
    results: Iterable[StreamResult], truth: Mapping[str, str], weights: Mapping[str, float] | None = None
) -> list[StreamStats]:
    """Return the stats of all results, then of each lane.

    `truth`: labels by message_id. `weights`: the weight of each message, if they do not count equally.
    """
    last = {result.message_id: result for result in results}
    groups: dict[str, list[StreamResult]] = {"all": list(last.values())}
    for result in last.values():
        groups.setdefault(result.by, []).append(result)
    order = [name for name in ("all", "student", "llm", "none") if name in groups]
    return [_lane_stats(name, groups[name], len(last), truth, weights or {}) for name in order]


def _lane_stats(
    by: str, results: Sequence[StreamResult], total: int, truth: Mapping[str, str], weights: Mapping[str, float]
) -> StreamStats:
    done = sorted(result.done_ms for result in results)
    waits = latencies(results)
    asked = [result for result in results if result.by == "llm" and result.student_label is not None]
    known = [result for result in results if result.message_id in truth and result.label is not None]
    prices = [
        None if result.cost_usd is None else Decimal(result.cost_usd) for result in results if result.by != "none"
    ]
    cost = None if None in prices else sum(filter(None, prices), Decimal(0))
    return StreamStats(
        by=by,
        n=len(results),
        share=len(results) / total if total else 0.0,
        per_second=(len(done) - 1) * 1000 / (done[-1] - done[0]) if done and done[-1] > done[0] else None,
        p50_ms=_quantile(waits, 0.5),
        p99_ms=_quantile(waits, 0.99),
        n_student=len(asked),
        student_agreement=_part(result.student_label == result.label for result in asked),
        n_truth=len(known),
        truth_agreement=_part(
            (truth[result.message_id] == result.label for result in known),
            [weights.get(result.message_id, 1.0) for result in known],
        ),
        cost_usd=cost,
        cost_per_1000_usd=None if cost is None or not results else cost * _ROWS_OF_A_PRICE / len(results),
    )


def latencies(results: Sequence[StreamResult]) -> list[int]:
    """Return the milliseconds from each message to its result, sorted; at least 0, as clocks differ."""
    return sorted(max(0, result.done_ms - result.since_ms) for result in results if result.since_ms is not None)


def _quantile(values: Sequence[int], part: float) -> float | None:
    return float(values[min(len(values) - 1, int(part * len(values)))]) if values else None


def _part(same: Iterable[bool], weights: Sequence[float] | None = None) -> float | None:
    flags = list(same)
    counts = weights or [1] * len(flags)
    return sum(count for flag, count in zip(flags, counts, strict=True) if flag) / sum(counts) if flags else None


def stats_markdown(stats: Sequence[StreamStats]) -> str:
    """Return the stats as Markdown, one row for each lane."""
    return rows_markdown(
        [
            {
                "answered by": row.by,
                "results": f"{row.n:,}",
                "share": percent(row.share, None, None),
                "per second": "-" if row.per_second is None else f"{row.per_second:,.0f}",
                "p50 ms": "-" if row.p50_ms is None else f"{row.p50_ms:,.0f}",
                "p99 ms": "-" if row.p99_ms is None else f"{row.p99_ms:,.0f}",
                "student as LLM": _agreed(row.student_agreement, row.n_student),
                "as truth": _agreed(row.truth_agreement, row.n_truth),
                "per 1,000": "-" if row.cost_per_1000_usd is None else money_text(row.cost_per_1000_usd),
            }
            for row in stats
        ]
    )


def _agreed(part: float | None, n: int) -> str:
    return "-" if part is None else f"{figure(part)} of {n:,}"


def latency_png(results: Sequence[StreamResult]) -> bytes:
    """Draw the share of results by latency and lane above; below, the share of messages that went to the LLM, over the
    messages in twenty parts.
    """
    with evaluation_extra("Drawing a stream"):
        figure_, lettering = blank(5.6)
    last = {result.message_id: result for result in results}
    kept = sorted(last.values(), key=lambda result: result.since_ms or result.done_ms)
    headline(figure_, lettering, "A stream, labeled", f"{len(kept):,} messages", 5.6)
    top = figure_.add_axes((0.1, 0.50, 0.85, 0.33))
    for number, (by, color) in enumerate((("student", BLUE), ("llm", AMBER), ("none", MUTED))):
        waits = latencies([result for result in kept if result.by == by])
        if waits:
            shares = [(at + 1) / len(waits) for at in range(len(waits))]
            top.plot([max(wait, 1) for wait in waits], shares, color=color, linewidth=2)
            lettering.text(figure_, 0.38 + 0.1 * number, 0.845, by, color=color, size=10)
    top.set_xscale("log")
    top.xaxis.set_major_formatter("{x:,.0f}")
    top.set_ylim(0, 1.02)
    bare(top, grid="both")
    lettering.text(figure_, 0.1, 0.845, "share of results after … ms", size=10, color=MUTED)
    below = figure_.add_axes((0.1, 0.08, 0.85, 0.27))
    size = max(1, -(-len(kept) // 20))
    parts = [kept[at : at + size] for at in range(0, len(kept), size)]
    shares = [Counter(result.by for result in part)["llm"] / len(part) for part in parts]
    below.bar(range(len(parts)), shares, color=AMBER, width=0.8)
    below.set_ylim(0, 1.02)
    below.set_xticks([])
    bare(below, grid="y")
    lettering.text(figure_, 0.1, 0.365, "share answered by the LLM, over the messages in order", size=10, color=MUTED)
    return png(figure_)
