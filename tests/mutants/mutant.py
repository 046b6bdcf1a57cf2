"""One change of one line of the package, by an operator of Cosmic Ray, and the choice among all that there are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tests.mutants.executed_lines import Line

__all__ = ["Mutant", "choose_mutants", "modules_in"]

_ENGINE = ("engine", "advice", "upkeep", "cascade", "loop", "files", "definition")
ROOMS = ("states.py", "storage/ledger", *_ENGINE, "core")


@dataclass(frozen=True)
class Mutant:
    """One change: the operator at its nth place in a module, and the line of that place."""

    module: str
    line: int
    operator: str
    nth: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.operator.removeprefix('core/')} ({self.nth})"

    def changed(self, root: Path) -> str:
        """Return the text of the module with the change."""
        text = mutate_code((root / self.module).read_text(encoding="utf-8"), get_operator(self.operator)(), self.nth)
        assert text is not None
        return text


def modules_in(root: Path) -> list[str]:
    """Return the modules that are changed, relative to the root of the repository."""
    package = root / "dagster_llm_batch"
    places = [package / room for room in ROOMS]
    files = [file for place in places for file in ([place] if place.suffix else sorted(place.rglob("*.py")))]
    return [str(file.relative_to(root)) for file in files]


def _mutants_of(root: Path, module: str) -> Iterator[Mutant]:
    nodes = list(ast_nodes(get_ast((root / module).read_text(encoding="utf-8"))))
    for name in operator_names():
        operator = get_operator(name)
        # Operators with arguments need a person to choose the change.
        if operator.arguments():
            continue
        made = operator()
        places = (start for node in nodes for start, _ in made.mutation_positions(node))
        for nth, (line, _) in enumerate(places):
            yield Mutant(module, line, name, nth)


def choose_mutants(root: Path, executed: Mapping[Line, frozenset[str]], count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants of lines that tests execute, each on another line, the same for a seed and a source.

    Lines are drawn before changes, so a line with many operators is as likely as a line with one.
    """
    of_line: dict[Line, list[Mutant]] = {}
    for module in sorted({module for module, _ in executed}):
        for mutant in _mutants_of(root, module):
            if (module, mutant.line) in executed:
                of_line.setdefault((module, mutant.line), []).append(mutant)
    draw = random.Random(seed)
    lines = draw.sample(sorted(of_line), min(count, len(of_line)))
    return [draw.choice(of_line[line]) for line in lines]
