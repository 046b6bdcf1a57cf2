"""`python -m tests.state_diagram`: the states of batches and shards as Mermaid diagrams, drawn from `states.py`.

With --write, into docs/design/ledger.md, between its two marks.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path

from dagster_llm_batch.states import BATCH_TRANSITIONS, SHARD_TRANSITIONS, BatchState, OwnState, Transition

PAGE = Path(__file__).resolve().parents[1] / "docs" / "design" / "ledger.md"
BEGIN, END = "<!-- states: begin -->", "<!-- states: end -->"


def diagrams() -> str:
    """Return the states and transitions of batches, and those of shards."""
    begun = {move: (sources, to) for move, (sources, to) in BATCH_TRANSITIONS.items() if sources}
    sent_by = next(move for move, (sources, _) in BATCH_TRANSITIONS.items() if not sources)
    batches = _diagram(BatchState, begun, f"{BATCH_TRANSITIONS[sent_by][1]}: {sent_by}")
    shards = _diagram(OwnState, SHARD_TRANSITIONS, f"{next(iter(OwnState))}")
    return f"A batch:\n\n{batches}\n\nA shard:\n\n{shards}"


def _diagram(states: type[StrEnum], moves: Mapping[Transition, tuple[Collection[StrEnum], StrEnum]], first: str) -> str:
    """Return all states and transitions; transitions between the same two states share an arrow."""
    arrows: dict[tuple[StrEnum, StrEnum], list[str]] = defaultdict(list)
    for move, (origins, target) in moves.items():
        for origin in states:  # a frozenset has no order
            if origin in origins:
                arrows[origin, target].append(move.value)
    lines = [f"    [*] --> {first}"]
    lines += [f"    {origin} --> {target}: {', '.join(names)}" for (origin, target), names in arrows.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def with_diagram(page: str) -> str:
    """Return the page with the current diagrams."""
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        sys.exit(f"The page needs the lines {BEGIN} and {END}.")
    return f"{head}{BEGIN}\n{diagrams()}\n{END}{tail}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(with_diagram(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(diagrams())
