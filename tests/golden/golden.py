"""The golden files, and the text that shows differences from them."""

from __future__ import annotations

import difflib
from pathlib import Path

FILES = Path(__file__).with_name("files")
_SHOWN, _WIDTH, _BEFORE = 12, 220, 60


def golden(name: str) -> bytes:
    """Return the content of a file, or nothing if it does not exist."""
    path = FILES / f"{name}.txt"
    return path.read_bytes() if path.exists() else b""


def difference(name: str, then: bytes, now: bytes) -> str:
    """Return the first different lines, each under its section and around its first difference; "" for equal texts."""
    if then == now:
        return ""
    old, new = (text.decode().split("\n") for text in (then, now))
    shown, count = [f"{name} differs from tests/golden/files/{name}.txt:"], 0
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        pairs = max(b - a, d - c)
        count += pairs
        for at in range(pairs):
            if len(shown) > 3 * _SHOWN:
                break
            was, is_ = (text[lo + at] if lo + at < hi else None for text, lo, hi in ((old, a, b), (new, c, d)))
            start = _first_difference(was or "", is_ or "")
            shown.append(f"  in {_section(new, min(c + at, len(new) - 1))}")
            shown += [f"    {sign} {_cut(line, start)}" for sign, line in (("-", was), ("+", is_)) if line is not None]
    shown.append(f"  {count} lines in all. If that is meant: python -m tests.golden --write, and read the git diff.")
    return "\n".join(shown)


def _section(lines: list[str], at: int) -> str:
    return next((line for line in reversed(lines[: at + 1]) if line.startswith("== ")), "== the start")


def _first_difference(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _cut(line: str, start: int) -> str:
    begin = max(0, start - _BEFORE)
    return ("…" if begin else "") + line[begin : begin + _WIDTH] + ("…" if len(line) > begin + _WIDTH else "")
