"""`python -m tests.state_diagram`: the states of a shard as a Mermaid diagram, drawn from the table in `states.py`.

With --write, into docs/design/ledger.md, between its two marks.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from dagster_llm_batch.states import MOVES, ShardState

PAGE = Path(__file__).resolve().parents[1] / "docs" / "design" / "ledger.md"
BEGIN, END = "<!-- states: begin -->", "<!-- states: end -->"


def diagram() -> str:
    """All states and moves; moves between the same two states share an arrow."""
    arrows: dict[tuple[ShardState, ShardState], list[str]] = defaultdict(list)
    for move, (origins, target) in MOVES.items():
        for origin in ShardState:  # in its order: a frozenset has none
            if origin in origins:
                arrows[origin, target].append(move.value)
    origins = {origin for origin, _ in arrows}
    lines = [f"    [*] --> {next(iter(ShardState))}"]
    lines += [f"    {origin} --> {target}: {', '.join(moves)}" for (origin, target), moves in arrows.items()]
    lines += [f"    {state} --> [*]" for state in ShardState if state not in origins]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def with_diagram(page: str) -> str:
    """The page with the diagram of today."""
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        sys.exit(f"The page needs the lines {BEGIN} and {END}.")
    return f"{head}{BEGIN}\n{diagram()}\n{END}{tail}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(with_diagram(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(diagram())
