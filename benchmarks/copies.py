"""The grouping of near copies: processor time, time and memory for a million texts, a third of them near copies.

python -m benchmarks.copies
python -m benchmarks.copies 100000

Texts have thirty words. A near copy differs in one of them.
"""

from __future__ import annotations

import random
import sys
import tempfile

from benchmarks.measure import Work, child
from dagster_llm_batch.core.identity import make_requests
from dagster_llm_batch.core.near_copies import NearCopies

_WORDS = [first + second + third for first in "bdfgk" for second in "aeiou" for third in ("ral", "mit", "son", "ver")]
_AT_ONCE, _EACH = 4_096, 30


def main(count: str) -> None:
    """Group so many texts. Every third is a near copy of the one before."""
    work, texts = Work(), int(count)
    with tempfile.TemporaryFile() as file:
        copies = NearCopies(0.8, new_file=lambda: file)
        for start in range(0, texts, _AT_ONCE):
            some = [_text(number) for number in range(start, min(start + _AT_ONCE, texts))]
            copies.add([request.request_id for request in make_requests(None, some)], some, [b""] * len(some))
        added_s = work.cpu_s()
        found = len(copies.groups())
    if not 0.8 * texts / 3 < found < 1.1 * texts / 3:
        raise RuntimeError(f"{found} near copies among {texts} texts")
    work.report(add_s=added_s, found=found)


def _text(number: int) -> str:
    is_copy = number % 3 == 2
    draw = random.Random(number - 1 if is_copy else number)
    words = [f"{draw.choice(_WORDS)}{draw.choice(_WORDS)}" for _ in range(_EACH)]
    if is_copy:
        words[number % _EACH] = f"copy{number}"
    return " ".join(words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        main(sys.argv[2])
    else:
        wanted = int(sys.argv[1]) if sys.argv[1:] else 1_000_000
        cost = child("benchmarks.copies", "one", wanted)
        print(
            f"{wanted:,} texts, {cost.said['found']:,} near copies: {cost.work_cpu_s:.0f} s of processor time, "
            f"{cost.said['add_s']:.0f} s of it to add the texts, {cost.wall_s:.0f} s in all, {cost.peak_mb:,.0f} MB"
        )
