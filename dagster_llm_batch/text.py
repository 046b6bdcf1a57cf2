"""Text from outside as people read it: one printable line of bounded length. The only cleaner of texts. Pure.

Vendors quote the requests, and labels are an LLM's output, so both can contain anything. Escape sequences must
not reach a terminal, and bidirectional controls must not turn the text around them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal

__all__ = [
    "age_text",
    "cell_text",
    "column_text",
    "is_id",
    "keep_utf8",
    "last_words",
    "learned_text",
    "list_text",
    "money_text",
    "plain_text",
    "plain_words",
    "replace_halves",
    "short_run",
    "text_of",
]

# A command string (OSC and its kin) up to its end, CSI of 7 and of 8 bits, and any other sequence. A command string
# without an end loses only its start: the text after it may be our own advice. The same holds for one of 8 bits
# (U+009D), since UTF-8 quotation marks that are read as Latin-1 contain those characters.
_ESCAPES = re.compile(
    r"\x1b+[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|(?:\x1b+\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b+(?:[!-/]*[0-~])?"
)
_MAX_MESSAGE_CHARS = 500
_MAX_READ_CHARS = 20_000
_MAX_ID_CHARS = 2_000
_MAX_DIGITS = 40


def text_of(value: object) -> str:
    """Return the value as text, with its first 20,000 characters. Never raises: where a text should be may be anything.

    Use it for texts to search, for example for a secret; people get `plain_text`.
    """
    try:
        if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < _MAX_DIGITS:
            # `6.37500E-7` and `0E-12` are hard to read.
            return format(value, "f")
        return (value if isinstance(value, str) else str(value))[:_MAX_READ_CHARS]
    except Exception:  # noqa: BLE001 -- what nests too deep, or what its own class cannot show
        return type(value).__name__


def plain_text(value: object, limit: int = 60) -> str:
    """Return the value as one line of at most `limit` characters, the last of them … where some were left out.

    Escape sequences and characters that do not print (controls, invisible formatting, half surrogates) are removed;
    runs of white space become one space.
    """
    text = " ".join(_ESCAPES.sub("", text_of(value)).split())
    if not text.isprintable():
        text = " ".join("".join(filter(str.isprintable, text)).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def list_text(names: Sequence[str]) -> str:
    """Return names as people list them: `a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def column_text(names: Sequence[str]) -> str:
    """Return columns in words: `column a`, `columns a and b`."""
    return f"{'column' if len(names) == 1 else 'columns'} {list_text(names)}"


def money_text(amount: Decimal | float) -> str:
    """Return US dollars, as $1,234.50: in cents, and below a dollar with four decimals or two significant digits."""
    exact = Decimal(str(amount))
    if not exact or exact.adjusted() >= 0:
        return f"{'-' if exact < 0 else ''}${abs(exact):,.2f}"
    shown = f"{abs(exact):.{max(4, 1 - exact.adjusted())}f}"
    whole, _, decimals = shown.partition(".")
    return f"{'-' if exact < 0 else ''}${whole}.{decimals.rstrip('0'):0<2}"


def learned_text(submissions: int | None, output: str | None = None) -> str:
    """Return the basis of an estimate: the number of earlier submissions, or calibrated rates.

    `output`: the basis of the output in words, if it was not learned.
    """
    if submissions is None:
        return "calibrated rates" if output is None else f"calibrated rates, {output}"
    return f"learned from {submissions} earlier submission{'' if submissions == 1 else 's'}"


def age_text(age: timedelta) -> str:
    """Return an age in hours and minutes, such as `2 h 13 m`."""
    minutes = int(age.total_seconds()) // 60
    return f"{minutes // 60} h {minutes % 60} m" if minutes >= 60 else f"{minutes} m"  # noqa: PLR2004 - of an hour


def cell_text(value: object, limit: int = 120) -> str:
    """Return `plain_text` for a cell of a table, which is empty for None."""
    return "" if value is None else plain_text(value, limit)


def short_run(run_id: str | None) -> str:
    """Return a run's id as Dagster's web page shows it."""
    return (run_id or "unknown")[:8]


def plain_words(value: object) -> str:
    """Return `plain_text` for a message: at most 500 characters."""
    return plain_text(value, _MAX_MESSAGE_CHARS)


def last_words(log: str) -> str:
    """Return the lines of a log as one line, cut to the last 500 characters."""
    lines = [words for line in log.splitlines() if (words := plain_words(line))]
    return " | ".join(lines)[-_MAX_MESSAGE_CHARS:]


def is_id(value: object) -> bool:
    """Return whether this can be a vendor's id: a text without spaces that fits into a URL and a ledger."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MAX_ID_CHARS
        and value.isprintable()
        and not any(char.isspace() for char in value)
    )


def keep_utf8(texts: Sequence[str]) -> None:
    """Let each text keep its UTF-8: who encodes it from now on copies that, which takes a tenth of the time."""
    if all(map(str.isascii, texts)):
        return
    import pyarrow as pa  # noqa: PLC0415 - of no use to who only shows texts

    # Python caches the encoding of a text for C libraries. Lone surrogates have no encoding.
    with suppress(UnicodeEncodeError):
        pa.array(texts, pa.large_string())


def replace_halves(text: str) -> str:
    """Return the text with U+FFFD for half surrogates, which UTF-8 cannot hold; otherwise unchanged."""
    if text.isascii():
        return text
    try:
        # UTF-16 holds no half surrogate either, and is written in a third of the time.
        text.encode("utf-16-le")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
