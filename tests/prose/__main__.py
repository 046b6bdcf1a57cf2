"""`python -m tests.prose`: hard-to-read sentences per 1,000 words, by room, against the limit of each.

python -m tests.prose                   every room: fails where one is above its limit in tests/prose/limits.txt
python -m tests.prose docs/start.md     these files or folders: each sentence with a hit, and the figure of each file
python -m tests.prose --write           lower the limits of rooms that were rewritten; it never raises one
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.prose.patterns import NAMES, WORD, find_patterns
from tests.prose.texts import SUFFIXES, read_sentences

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Path(__file__).with_name("limits.txt")
TREES = ("benchmarks", "dagster_llm_batch", "docs", "example_project", "tests")
"""Their folders are rooms, and so is each page at the top of the repository."""
READERS_GOAL, WRITERS_GOAL = 10, 12
"""Hits per 1,000 words: in prose for users, and in tests, benchmarks and the example."""
FREE_HITS = 1
"""Any room may have one, since a single hit is a high rate in a room of a few sentences."""


class Hit(NamedTuple):
    """A sentence that has patterns."""

    path: Path
    line: int
    text: str
    patterns: list[str]


class Figures(NamedTuple):
    """Words and hits of a room or a file."""

    words: int
    hits: Counter[str]

    @property
    def rate(self) -> float:
        """Hits per 1,000 words."""
        return 1000 * self.hits.total() / max(self.words, 1)


def find_files(root: Path) -> list[Path]:
    """Return the pages and modules below a folder, or the file itself."""
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    return [path for path in files if path.suffix in SUFFIXES and "__pycache__" not in path.parts]


def group_by_room(root: Path) -> dict[str, list[Path]]:
    """Return the files of a repository by room: `docs/how-to` is one, and `README.md` another."""
    rooms: dict[str, list[Path]] = {path.name: [path] for path in sorted(root.glob("*.md"))}
    for path in (path for tree in TREES for path in find_files(root / tree)):
        rooms.setdefault("/".join(path.relative_to(root).parts[:-1][:2]), []).append(path)
    return rooms


def measure(paths: Iterable[Path]) -> tuple[Figures, list[Hit]]:
    """Count words and hits of files, and return the sentences with hits."""
    words, found = 0, []
    for path in paths:
        for line, text, is_summary in read_sentences(path):
            words += len(WORD.findall(text))
            if patterns := find_patterns(text, is_summary=is_summary):
                found.append(Hit(path, line, text, patterns))
    return Figures(words, Counter(name for hit in found for name in hit.patterns)), found


def goal_of(room: str) -> int:
    """Return the limit of a room that `limits.txt` does not name."""
    return WRITERS_GOAL if room.startswith(("benchmarks", "example_project", "tests")) else READERS_GOAL


def read_limits(text: str) -> dict[str, int]:
    """Parse lines of a room and its limit; the lowest counts where a merge left two lines of a room."""
    limits: dict[str, int] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            room, limit = line.split()
            limits[room] = min(int(limit), limits.get(room, int(limit)))
    return limits


def lower_limits(text: str, rates: dict[str, float]) -> str:
    """Return the text of the limits with lower figures where rooms have fallen, without rooms that reached the goal."""
    kept = [line for line in text.splitlines() if not line or line.startswith("#")]
    for room, limit in sorted(read_limits(text).items()):
        lowered = min(limit, math.ceil(rates.get(room, 0)))
        kept += [f"{room} {lowered}"] if lowered > goal_of(room) else []
    return "\n".join(kept) + "\n"


def check_rooms(root: Path, limits: Path, *, write: bool = False) -> int:
    """Print the rooms above their limits, and the worst sentences of each. Return the exit status."""
    measured = {room: measure(paths) for room, paths in group_by_room(root).items()}
    rates = {room: figures.rate for room, (figures, _) in measured.items()}
    text = limits.read_text(encoding="utf-8")
    if write:
        text = lower_limits(text, rates)
        limits.write_text(text, encoding="utf-8")
    allowed = read_limits(text)
    too_high = [
        room
        for room, (figures, _) in measured.items()
        if figures.hits.total() > FREE_HITS and figures.rate > allowed.get(room, goal_of(room))
    ]
    for room in too_high:
        print(f"{room}: {rates[room]:.1f} hits per 1,000 words, and its limit is {allowed.get(room, goal_of(room))}:")
        _print_hits(root, sorted(measured[room][1], key=lambda hit: -len(hit.patterns))[:5])
    total = sum(figures.hits.total() for figures, _ in measured.values())
    words = sum(figures.words for figures, _ in measured.values())
    print(f"prose: {1000 * total / max(words, 1):.1f} hits per 1,000 words in {len(rates)} rooms")
    if too_high:
        print(f"Rewrite sentences of {', '.join(too_high)}; `python -m tests.prose FILE` shows all of a file.")
    return 1 if too_high else 0


def _print_hits(root: Path, hits: Iterable[Hit]) -> None:
    for path, line, text, patterns in hits:
        place = path.relative_to(root) if path.is_relative_to(root) else path
        print(f"{place}:{line}: {text} [{', '.join(patterns)}]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check all rooms, or print the hits of the files that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders; without any, all rooms are checked")
    parser.add_argument("--pattern", choices=NAMES, help="print only sentences with this pattern")
    parser.add_argument("--write", action="store_true", help="lower the limits of rooms that have fallen")
    named = parser.parse_args(arguments)
    if not named.paths:
        return check_rooms(ROOT, LIMITS, write=named.write)
    for path in (path for root in named.paths for path in find_files(root)):
        figures, hits = measure([path])
        _print_hits(ROOT, [hit for hit in hits if named.pattern in {None, *hit.patterns}])
        print(f"{figures.rate:6.1f} hits per 1,000 words in {figures.words:6} words: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
