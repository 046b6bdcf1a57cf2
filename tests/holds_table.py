"""`python -m tests.holds_table`: the table of reasons to wait, made from the rules in `loop/holds.py`.

With --write, into docs/design/ledger.md, between its two marks.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.states import HoldReason

PAGE = Path(__file__).resolve().parents[1] / "docs" / "design" / "ledger.md"
BEGIN, END = "<!-- holds: begin -->", "<!-- holds: end -->"


def table() -> str:
    """Return all reasons to wait, each with its rule."""
    header = ["State of the shard", "Reason", "Waits for", "Limit", "Message", "Exits"]
    rows = [header, ["---"] * len(header), *(_row(reason) for reason in HoldReason)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(reason: HoldReason) -> list[str]:
    rule = RULES[reason]
    states = ", ".join(f"`{state}`" for state in rule.states) or "any"
    limit = f"none: {rule.endless}" if rule.limit is None else _limit_text(rule.limit)
    *others, last = rule.exits
    exits = f"{', '.join(others)} or {last}" if others else last
    return [states, f"`{reason}`", rule.waits_for, limit, rule.told, exits]


def _limit_text(limit: timedelta | str) -> str:
    if isinstance(limit, str):
        return limit
    hours = limit // timedelta(hours=1)
    days, rest = divmod(hours, 24)
    counted = f"{days} days" if not rest else f"{hours} hours"
    return "an hour" if hours == 1 else counted


def with_table(page: str) -> str:
    """Return the page with the current table."""
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        sys.exit(f"The page needs the lines {BEGIN} and {END}.")
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
