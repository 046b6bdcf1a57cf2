"""`python -m example_project.labelers.clerk -i in.jsonl -o out.jsonl`: rules answer questions about papers.

It finds the `kind` of a paper by its words, and of an invoice the `seller`, the `total_cents` and a `quote` of the line
with the total. Its rules are simple, so it errs where real labelers do: it takes a letter titled "Your invoice" for an
invoice, the first total for the last one, and it writes quotes from memory: with one space between words, and amounts
in its own form. Usage counts words between white space.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from example_project.labelers.run_batch import Answer, command
from example_project.labelers.vader import completion, last_text

__all__ = ["answering", "main"]

_FINGERPRINT = "rules"
_DOCUMENT = re.compile(r"Document 1 of 1:\s+(.*)", re.DOTALL)
_TOTAL = re.compile(r"(?i)(\w*total[^\d]*?)\s*((?:EUR )?[\d.,]*\d)( EUR)?\s*$", re.MULTILINE)


@contextlib.contextmanager
def answering(model: str, _options: object = None) -> Iterator[Answer]:
    """Yield the function that answers."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        text = last_text(body)
        document = _DOCUMENT.search(text)
        return completion(model, _read(document.group(1) if document else text), body, _FINGERPRINT)

    yield answer


def _read(text: str) -> dict[str, object]:
    """Return all that the rules find in a paper."""
    lower, lines = text.lower(), text.splitlines()
    kind = "invoice" if "invoice" in lower else "receipt" if "receipt" in lower else "letter"
    found = _TOTAL.search(text)
    known: dict[str, object] = {
        "kind": kind,
        "seller": lines[0].strip() if lines else "",
        "total_cents": None,
        "quote": None,
    }
    if found is None:
        return known
    cents = int(re.sub(r"\D", "", found.group(2)))
    words = " ".join(found.group(1).split())
    return {**known, "total_cents": cents, "quote": f"{words} {cents / 100:,.2f}{found.group(3) or ''}"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return command("example_project.labelers.clerk", "clerk", answering, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
