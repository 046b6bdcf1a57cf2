"""Verdicts on pairs of answers, each asked in both orders: who wins, how surely, and how much the order decides.

    both orders name the same answer    a win
    both verdicts are a tie             a tie
    they differ                         inconsistent: the order decided, or the judge is not sure; counted as a tie
    a verdict is missing                unjudged: left out, counted
    the answers are the same            identical: a tie without a question to the judge

A preference for a position shows in the inconsistent ones alone: in consistent ones each position wins once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics.clusters import Units, cluster_ids, number_units
from dagster_llm_batch.metrics.columns import EXAMPLES
from dagster_llm_batch.metrics.intervals import Interval, mean_interval, share_interval, sign_test
from dagster_llm_batch.metrics.numeric import CASE_ID
from dagster_llm_batch.metrics.schemas import evaluation_extra, schema_of, table_of
from dagster_llm_batch.metrics.tables import figure, percent, rows_markdown, share

__all__ = ["PAIRWISE_SCHEMA", "VERDICTS", "Pairwise", "compare_pairs", "pairwise_markdown", "pairwise_to_arrow"]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NO_ROWS = Interval(None, None, "none: no rows")

VERDICTS = ("A", "B", "tie")
"""The judge's verdicts: the first answer is better, the second is, or neither."""


@dataclass(frozen=True)
class Pairwise:
    """Candidates `a` and `b`, compared on the rows that both answered.

    `n_rows = n_identical + n_unjudged + n_judged`, `n_judged = n_a_wins + n_b_wins + n_ties + n_inconsistent`.

    Intervals (95 %) and tests are by the unit: rows whose verdicts are replies to the same requests are one.
    `…_interval` is their method (see `intervals`), or the reason for a missing one.

    - `win_rate_a`: share of the judged and identical rows that `a` wins; a tie of any kind is half a win. The win rate
      of `b` is the rest to 1. None without such rows.
    - `p_value`: how often two equally good candidates would differ as much in wins (exact sign test, ties left out).
    - `inconsistent_rate`: share of the judged rows whose verdicts differ.
    - `first_rate`: share of A, the answer shown first, among the verdicts A or B of judged rows: 0.5 from a judge
      without a preference for a position, whoever is better. None without such verdicts.
    - `n_both_first`, `n_both_second`: rows where the answer shown first, or second, won in both orders;
      `position_p_value`: how often they would differ as much without a preference (exact sign test).
    """

    a: str
    b: str
    n_rows: int
    n_identical: int
    n_unjudged: int
    n_judged: int
    n_a_wins: int
    n_b_wins: int
    n_ties: int
    n_inconsistent: int
    win_rate_a: float | None
    win_rate_a_low: float | None
    win_rate_a_high: float | None
    win_rate_a_interval: str
    p_value: float
    inconsistent_rate: float | None
    first_rate: float | None
    first_rate_low: float | None
    first_rate_high: float | None
    first_rate_interval: str
    n_both_first: int
    n_both_second: int
    position_p_value: float


PAIRWISE_SCHEMA = schema_of(Pairwise)
"""The fields of `Pairwise`, in order."""


def compare_pairs(cases: pa.Table, verdicts: pa.Table, candidates: Sequence[str], *, key: str) -> tuple[Pairwise, ...]:
    """Return one figure for each pair of `candidates`, in their order.

    `cases`: see `pairwise_cases`. `verdicts`: `case_id`, `verdict`, null without a verdict of the judge, and
    `llm_request_id`, if requests were sent. Raises InputError for a verdict outside of VERDICTS.
    """
    requests = cluster_ids(verdicts, None, "the verdicts").to_pylist()
    said = list(zip(verdicts["verdict"].to_pylist(), requests, strict=True))
    by_case = dict(zip(verdicts[CASE_ID].to_pylist(), said, strict=True))
    if strangers := {verdict for verdict, _ in said} - {*VERDICTS, None}:
        raise InputError(
            f"Verdicts {', '.join(sorted(map(repr, strangers))[:EXAMPLES])} are none of {', '.join(VERDICTS)}."
        )
    columns = (cases[name].to_pylist() for name in (CASE_ID, key, "first", "second", "identical"))
    rank = {name: at for at, name in enumerate(candidates)}
    asked: dict[tuple[str, str], dict[object, dict[str, _Said]]] = {}
    identical: Counter[tuple[str, str]] = Counter()
    for case_id, row, first, second, same in zip(*columns, strict=True):
        pair = (first, second) if rank[first] < rank[second] else (second, first)
        if same:
            identical[pair] += 1
        else:
            asked.setdefault(pair, {}).setdefault(row, {})[first] = by_case.get(case_id, (None, None))
    pairs = [(a, b) for at, a in enumerate(candidates) for b in candidates[at + 1 :]]
    return tuple(_pair(a, b, [*asked.get((a, b), {}).values()], identical[a, b]) for a, b in pairs)


_Said = tuple[str | None, str | None]
"""A verdict, and the request that it is the reply to."""


def _pair(a: str, b: str, rows: Sequence[dict[str, _Said]], n_identical: int) -> Pairwise:
    """Compute one pair. `rows`: the verdicts on each row, by the candidate that was shown first."""
    with evaluation_extra("Comparing candidates"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    judged = [(row[a], row[b]) for row in rows if a in row and b in row and row[a][0] and row[b][0]]
    verdicts = [(first, second) for (first, _), (second, _) in judged]
    number = number_units(*(pa.array([row[order][1] for row in judged], pa.large_string()) for order in (0, 1)))
    both = Counter(verdicts)
    n_judged = len(judged)
    n_a, n_b, n_ties = both["A", "B"], both["B", "A"], both["tie", "tie"]
    n_compared = n_judged + n_identical
    wins = n_a + (n_compared - n_a - n_b) / 2
    lead = np.array([(said == ("A", "B")) - (said == ("B", "A")) for said in verdicts], np.float64)
    # Identical answers are ties of rows without a question to the judge: each is a unit.
    units = Units(np.append(np.ones(n_judged), n_identical), np.append(number, -1))
    win = mean_interval(np.append((1 + lead) / 2, 0.5), units, lowest=0, highest=1) if n_compared else _NO_ROWS
    for_first, for_second = (np.array([said.count(which) for said in verdicts], np.float64) for which in "AB")
    firsts, decided = int(for_first.sum()), int((for_first + for_second).sum())
    shown = Units(np.concatenate([for_first, for_second]), np.concatenate([number, number]))
    first = share_interval(np.repeat([1.0, 0.0], n_judged), shown) if decided else _NO_ROWS
    n_inconsistent = n_judged - n_a - n_b - n_ties
    return Pairwise(
        a=a,
        b=b,
        n_rows=len(rows) + n_identical,
        n_identical=n_identical,
        n_unjudged=len(rows) - n_judged,
        n_judged=n_judged,
        n_a_wins=n_a,
        n_b_wins=n_b,
        n_ties=n_ties,
        n_inconsistent=n_inconsistent,
        win_rate_a=wins / n_compared if n_compared else None,
        win_rate_a_low=win.low,
        win_rate_a_high=win.high,
        win_rate_a_interval=win.method,
        p_value=_sign_test(lead, number),
        inconsistent_rate=n_inconsistent / n_judged if n_judged else None,
        first_rate=firsts / decided if decided else None,
        first_rate_low=first.low,
        first_rate_high=first.high,
        first_rate_interval=first.method,
        n_both_first=both["A", "A"],
        n_both_second=both["B", "B"],
        position_p_value=_sign_test((for_first - for_second) * (lead == 0), number),
    )


def _sign_test(lead: NDArray[np.float64], number: NDArray[np.int64]) -> float:
    """Return the p-value of the units that lead to either side; a unit of several rows counts once."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    by_unit = np.bincount(number, lead) if len(number) else lead
    return sign_test(int((by_unit > 0).sum()), int((by_unit < 0).sum()))


def pairwise_to_arrow(figures: Iterable[Pairwise]) -> pa.Table:
    """Return one row for each pair, in PAIRWISE_SCHEMA."""
    return table_of(figures, Pairwise)


def pairwise_markdown(figures: Iterable[Pairwise]) -> str:
    """Return the winners, and the reliability of the judge; 95 % intervals."""
    return rows_markdown(
        [
            {
                "a": pair.a,
                "b": pair.b,
                "a wins, ties half (95 %)": percent(pair.win_rate_a, pair.win_rate_a_low, pair.win_rate_a_high),
                "a : b": f"{pair.n_a_wins:,} : {pair.n_b_wins:,}",
                "sign test p": f"{pair.p_value:.2g}",
                "ties": f"{pair.n_ties:,}",
                "identical": f"{pair.n_identical:,}",
                "inconsistent": share(pair.n_inconsistent, pair.n_judged),
                "for the first shown (95 %)": percent(pair.first_rate, pair.first_rate_low, pair.first_rate_high),
                "always first : second": f"{pair.n_both_first:,} : {pair.n_both_second:,}",
                "position p": figure(pair.position_p_value),
                "unjudged": f"{pair.n_unjudged:,}",
            }
            for pair in figures
        ]
    )
