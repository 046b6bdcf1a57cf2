"""The papers of `python3 -m example_project documents`: invoices, receipts and letters as PDF, made here.

None is anybody's paper, and each PDF carries a line that states it. The same number always makes the same paper.
Invoices come in four layouts, since real ones differ: plain, with the amount on its own line, with a comma for the
decimals, and with a subtotal before the total.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # Dagster can load the definitions without it
    import polars as pl

__all__ = ["MADE", "PAPERS", "Kind", "Paper", "load_papers", "load_totals", "make_paper", "make_pdf", "text_of_pdf"]

PAPERS = 60
MADE = "Made by the example of dagster-llm-batch. This is nobody's paper."

Kind = Literal["invoice", "letter", "receipt"]

_LAYOUTS = ("plain", "own line", "plain", "letter", "receipt", "tax", "plain", "comma", "letter about one", "plain")
_SELLERS = ("Alder Office Supply", "Birch & Sons", "Cedar Light GmbH", "Dogwood Prints", "Elm Street Bakery")
_GOODS = ("chairs", "lamps", "desks", "notebooks", "posters", "cakes", "shelves")
_PAGE_INCHES, _LEFT, _TOP, _LINE = (8.27, 11.69), 0.1, 0.93, 0.025


@dataclass(frozen=True)
class Paper:
    """One paper, with the truth about it. `total_cents` is None for a letter."""

    paper_id: str
    kind: Kind
    lines: tuple[str, ...]
    total_cents: int | None


def make_paper(number: int) -> Paper:
    """Return the paper of a number, from 0 on. Of ten, seven are invoices."""
    layout, paper_id = _LAYOUTS[number % len(_LAYOUTS)], f"paper-{number:03d}"
    seller, goods = _SELLERS[number % len(_SELLERS)], _GOODS[number % len(_GOODS)]
    count, each, mark = 1 + number % 9, 1_050 + 977 * number, f"2026-{number:03d}"
    total = count * each
    if layout.startswith("letter"):
        title = f"About our {goods}" if layout == "letter" else f"Your invoice {mark}"
        body = ("Dear customer,", f"thank you for your letter about the {goods}.", "Yours sincerely")
        return Paper(paper_id, "letter", (seller, title, *body), None)
    if layout == "receipt":
        lines = (seller, f"Receipt {mark}", f"{count} {goods}", f"Paid in cash: {_amount(total)} EUR")
        return Paper(paper_id, "receipt", lines, total)
    tax = total // 5 if layout == "tax" else 0
    last = {
        "plain": (f"Total due: {_amount(total)} EUR",),
        "own line": ("Total due in EUR:", _amount(total)),
        "comma": (f"Total due: EUR {_amount(total).translate(str.maketrans(',.', '.,'))}",),
        "tax": (
            f"Subtotal: {_amount(total)} EUR",
            f"Tax of 20 %: {_amount(tax)} EUR",
            f"Total due: {_amount(total + tax)} EUR",
        ),
    }
    head = (seller, f"Invoice {mark}", f"{count} {goods} at {_amount(each)} EUR")
    return Paper(paper_id, "invoice", (*head, *last[layout]), total + tax)


def _amount(cents: int) -> str:
    return f"{cents / 100:,.2f}"


def make_pdf(paper: Paper) -> bytes:
    """Return a paper as PDF, always the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Fonts of type 42 keep the characters, so that the text can be read.
    with rc_context({"pdf.fonttype": 42}):
        page, out = Figure(figsize=_PAGE_INCHES), io.BytesIO()
        for number, line in enumerate((*paper.lines, "", MADE)):
            page.text(_LEFT, _TOP - number * _LINE, line, family="monospace", size=11)
        page.savefig(out, format="pdf", metadata={"CreationDate": None, "Subject": MADE})
    return out.getvalue()


def text_of_pdf(data: bytes) -> str:
    """Return the text of a PDF, as `documents_as="text"` sends it."""
    from pypdf import PdfReader

    return "\n\n".join(page.extract_text() for page in PdfReader(io.BytesIO(data)).pages)


def load_papers() -> pl.DataFrame:
    """Return all papers: `paper_id`, `pdf` and `text`."""
    import polars as pl

    made = [make_paper(number) for number in range(PAPERS)]
    files = [make_pdf(paper) for paper in made]
    texts = [text_of_pdf(file) for file in files]
    return pl.DataFrame({"paper_id": [paper.paper_id for paper in made], "pdf": files, "text": texts})


def load_totals() -> pl.DataFrame:
    """Return the truth about all invoices: `paper_id` and `total_cents`."""
    import polars as pl

    made = (make_paper(number) for number in range(PAPERS))
    truth = [(paper.paper_id, paper.total_cents) for paper in made if paper.kind == "invoice"]
    return pl.DataFrame(truth, schema={"paper_id": pl.String, "total_cents": pl.Int64}, orient="row")
