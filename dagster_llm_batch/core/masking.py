"""Masks: personal data in rows become placeholders such as [EMAIL_1] before anything is rendered, stored or sent. Pure.

    rows ─ Mask.apply ─▶ the same rows with placeholders ─▶ requests, manifest, archive, provider

1. The values leave no trace: placeholders are numbered in each row, and are no digest, which could be guessed.
2. One value has one placeholder within its row, in all masked columns; other rows do not share it.
3. Rows are masked in the same way each time, so that a row that did not change makes the same request.

A Masker finds the values. The built-in one uses patterns, and check digits where a kind of number has them. It finds no
names: give Mask(by=[…]) a masker of your own for these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import ConfigError, InputError

__all__ = ["Found", "Mask", "Masker", "PersonalData", "mask_as_of"]

PersonalData = Literal["email", "phone", "iban", "card", "ip"]
"""Kinds that the built-in masker finds."""

_KIND = re.compile(r"[a-z][a-z0-9_]*")


class Found(NamedTuple):
    """A value in a text: its place, and its kind in small letters, such as "email" or "person"."""

    start: int
    end: int
    kind: str


@runtime_checkable
class Masker(Protocol):
    """Finds values to mask.

    1. `name` identifies the masker and its version. Change it when the masker finds other values: it is part of what
       makes a request the same.
    2. `find` returns the places of all values in a text, in any order. The same text has the same places each time.
    3. A masker is picklable where the dataset has workers.
    """

    @property
    def name(self) -> str: ...

    def find(self, text: str) -> Iterable[Found]:
        """Return the values to mask in this text."""
        ...


@checked
@dataclass(frozen=True)
class Mask:
    """Which values of the rows are replaced by placeholders before a request is made of them.

    Args:
        columns: Columns of text, each one that the prompt reads and that may hold personal data. Other columns are
            sent as they are. The key cannot be masked. Columns of `keep` hold placeholders in the labeled table, too.
        what: Kinds that the built-in masker finds: "email", "phone" (international, or with a leading zero), "iban" and
            "card" (both by their check digits), "ip".
        by: More maskers, such as one for names.
    """

    columns: Sequence[str]
    what: Sequence[PersonalData] = ("email", "phone", "iban", "card", "ip")
    by: Sequence[Masker] = ()

    def __post_init__(self) -> None:
        if isinstance(self.columns, str) or not self.columns:
            raise ConfigError(f'Mask.columns={self.columns!r} names no columns. Give a list, as in ["text"].')
        if unknown := [kind for kind in self.what if kind not in get_args(PersonalData)]:
            known = ", ".join(get_args(PersonalData))
            raise ConfigError(f"Mask.what has {', '.join(unknown)}; the kinds are {known}. Use `by` for others.")
        if not self.what and not self.by:
            raise ConfigError("Mask has neither kinds in `what` nor maskers in `by`, so it masks nothing. Give one.")

    def settings(self) -> Mapping[str, Any]:
        """Return what identifies the mask, as JSON."""
        return {"columns": list(self.columns), "what": list(self.what), "by": [masker.name for masker in self.by]}

    def check(self, key: str, images: Sequence[str]) -> None:
        """Raise ConfigError where it names the rows' key, or columns of images."""
        if key in self.columns:
            raise ConfigError(
                f"mask names the key {key!r}, which is stored and logged to find a row again. Use another key, such as "
                "a number of the row, and name only columns that the prompt reads."
            )
        if named := sorted(set(images) & set(self.columns)):
            raise ConfigError(f"mask names {', '.join(named)} of Prompt.images. Only text is masked: leave it out.")

    def apply(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, Counter[str]]:
        """Return the rows with placeholders, and the number of values that these replace, by kind.

        Raises InputError where a column is missing, or is no text.
        """
        texts = {name: self._texts(rows, name) for name in dict.fromkeys(self.columns)}
        counts: Counter[str] = Counter()
        masked: dict[str, list[str | None]] = {name: [] for name in texts}
        for row in zip(*texts.values(), strict=True):
            placeholders: dict[tuple[str, str], str] = {}
            for name, text in zip(texts, row, strict=True):
                masked[name].append(text if text is None else self._masked(text, placeholders, counts))
        for name, values in masked.items():
            place, field = rows.schema.get_field_index(name), rows.schema.field(name)
            rows = rows.set_column(place, field, pa.array(values, field.type))
        return rows, counts

    def stream(self, batches: Iterable[pa.RecordBatch], counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Yield the batches with placeholders, and add the number of values to `counts`."""
        for batch in batches:
            if not batch.num_columns:
                yield batch
                continue
            masked, found = self.apply(batch)
            counts.update(found)
            yield masked
            # The loop's variable would keep these rows in memory while the next ones are read.
            del batch, masked

    def _texts(self, rows: pa.RecordBatch, name: str) -> list[str | None]:
        if name not in rows.schema.names:
            columns = ", ".join(rows.schema.names)
            raise InputError(f"Mask.columns names {name!r}, which the rows lack. Columns of the rows: {columns}.")
        column = rows.column(name)
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if not is_text and not pa.types.is_null(column.type):
            raise InputError(
                f"Mask.columns names {name!r} of type {column.type}. Only text can be masked: convert the column to "
                "text in the rows, or leave it out of the prompt."
            )
        try:
            texts: list[str | None] = column.to_pylist()
        except UnicodeDecodeError:
            # The error holds the text, which nobody may see.
            raise InputError(
                f"Mask.columns names {name!r}, and one of its texts is not UTF-8. Decode the column before labeling, "
                "as by bytes.decode('utf-8', 'replace')."
            ) from None
        return texts

    def _masked(self, text: str, placeholders: dict[tuple[str, str], str], counts: Counter[str]) -> str:
        parts, end = [], 0
        for found in self._found(text):
            value = (found.kind, text[found.start : found.end])
            if value not in placeholders:
                number = 1 + sum(kind == found.kind for kind, _ in placeholders)
                placeholders[value] = f"[{found.kind.upper()}_{number}]"
            counts[found.kind] += 1
            parts += [text[end : found.start], placeholders[value]]
            end = found.end
        return "".join([*parts, text[end:]]) if parts else text

    def _found(self, text: str) -> list[Found]:
        """Return the values in the order of the text. Of values that overlap, all of their text is one value."""
        found = [Found(start, end, kind) for kind in self.what for start, end in _FINDERS[kind](text)]
        for masker in self.by:
            for one in masker.find(text):
                if not (0 <= one.start < one.end <= len(text) and _KIND.fullmatch(one.kind)):
                    raise ConfigError(
                        f"The masker {masker.name} found a value of kind {one.kind!r} from {one.start} to {one.end} in "
                        f"a text of {len(text)} characters. A place lies within its text, and a kind has small letters."
                    )
                found.append(Found(*one))
        joined: list[Found] = []
        for one in sorted(found, key=lambda one: (one.start, -one.end)):
            if joined and one.start < joined[-1].end:
                last = joined[-1]
                joined[-1] = last._replace(end=max(last.end, one.end))
            else:
                joined.append(one)
        return joined


def mask_as_of(settings: Mapping[str, Any] | None, present: Mask | None) -> Mask | None:
    """Return the mask of a stored definition: the present one where it has the same settings."""
    if settings is None or (present is not None and present.settings() == settings):
        return None if settings is None else present
    return Mask(settings["columns"], settings["what"], [_StoredMasker(name) for name in settings["by"]])


@dataclass(frozen=True)
class _StoredMasker:
    name: str

    def find(self, text: str) -> Iterable[Found]:  # noqa: ARG002 - it finds in none
        raise ConfigError(
            f"The masker {self.name} of an earlier definition is not there any more, so no row can be masked by it. "
            "Materialize the submission again, which masks by the present definition."
        )


_Place = tuple[int, int]

# Each pattern takes linear time: it tries each run of characters once, from its start. Lookbehinds are few, since they
# would hide values that touch other text.
_BETWEEN = r"[ .\-\u2010-\u2015\u00a0\u2009\u202f]"
_EMAIL = re.compile(
    r"""(?:(?<![\w.!#$%&'*+/=?^`{|}~-])[\w.!#$%&'*+/=?^`{|}~-]++|"(?:[^"\\\r\n]|\\.){1,64}")"""
    r"@(?:\w[\w-]*(?:\.[\w-]+)*|\[[^\]\s]{1,64}\])"
)
_DIGITS = re.compile(rf"\d+(?:{_BETWEEN}{{1,3}}\d+)*")
_IBAN = re.compile(r"[A-Za-z]{2}\d{2}")
_IBAN_GAP = re.compile(rf"{_BETWEEN}{{0,3}}")
# A zero within a number, such as 1.000.000, begins no phone number.
_PHONE = re.compile(
    r"(?:[+\uff0b]|(?<!\d)(?<!\d\.)0|\()@{0,3}\d+(?:@{1,3}\d+)*".replace("@", _BETWEEN.replace(".", "()./", 1))
)
_DAY, _MONTH, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d{2}"
_SHORT_YEAR = r"(?:19|20)?\d{2}"
_DATE = "|".join(
    rf"{first}([./-]){second}\{group}{third}"
    for group, (first, second, third) in enumerate(
        [(_DAY, _MONTH, _SHORT_YEAR), (_MONTH, _DAY, _SHORT_YEAR), (_YEAR, _MONTH, _DAY)], start=1
    )
)
# Dates alone, a span of them, and one before a time, whose colon ends what a phone number can be.
_DATES = re.compile(rf"\(?(?:{_DATE})(?P<hour> {{1,3}}(?:[01]?\d|2[0-3])(?=:[0-5]\d))?")
_TO_NEXT_DATE = re.compile(r"[ /\-\u2013]{1,3}")
_YEAR_BEFORE = re.compile(rf"(?<!\d){_YEAR}[./-]\Z")
_IPV4 = re.compile(r"(?<![^\W_])(?<!\d\.)\d{1,3}(?:\.\d{1,3}){3}(?![^\W_]|\.\d)")
_IPV6 = re.compile(
    r"(?<![^\W_])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?:\.\d{1,3}){3})?(?![^\W_]|:[^\W_])",
)
# The sum of the digits of a doubled digit.
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_IBAN_CHARS, _CARD_DIGITS, _LEAST_PHONE_DIGITS = (15, 34), (12, 19), 7


def _emails(text: str) -> Iterator[_Place]:
    yield from (found.span() for found in _EMAIL.finditer(text))


def _cards(text: str) -> Iterator[_Place]:
    """Yield the longest neighboring groups of digits, from each group on, that end with the right check digit.

    They overlap where digits before or after a card number also fit, and are masked together then.
    """
    for run in _DIGITS.finditer(text):
        groups = [(run.start() + part.start(), run.start() + part.end()) for part in re.finditer(r"\d+", run[0])]
        for first, (start, _) in enumerate(groups):
            digits, ends = "", []
            for group_start, end in groups[first : first + _CARD_DIGITS[1]]:
                if len(digits) + end - group_start > _CARD_DIGITS[1]:
                    break
                digits += text[group_start:end]
                ends.append((len(digits), end))
            for count, end in reversed(ends):
                if count < _CARD_DIGITS[0]:
                    break
                if _has_luhn_digit(digits[:count]):
                    yield start, end
                    break


def _has_luhn_digit(digits: str) -> bool:
    doubled = sum(_DOUBLED[int(digit)] for digit in digits[-2::-2])
    return (doubled + sum(map(int, digits[-1::-2]))) % 10 == 0


def _ibans(text: str) -> Iterator[_Place]:
    """Yield the texts from a country's letters on whose check digits are right (ISO 13616, mod 97)."""
    for begin in _IBAN.finditer(text):
        chars, at = "", begin.start()
        while _is_ascii_letter_or_digit(text, at) and len(chars) < _IBAN_CHARS[1]:
            chars += text[at].upper()
            at += 1
            if not _is_ascii_letter_or_digit(text, at):
                if len(chars) >= _IBAN_CHARS[0] and _has_iban_digits(chars):
                    yield begin.start(), at
                gap = _IBAN_GAP.match(text, at)
                at = at if gap is None else gap.end()


def _is_ascii_letter_or_digit(text: str, at: int) -> bool:
    return at < len(text) and text[at].isascii() and text[at].isalnum()


def _has_iban_digits(chars: str) -> bool:
    return int("".join(str(int(char, 36)) for char in chars[4:] + chars[:4])) % 97 == 1


def _phones(text: str) -> Iterator[_Place]:
    """Yield the numbers that begin as phone numbers do. What touches one by separators is masked with it."""
    for found in _PHONE.finditer(text):
        if sum(map(str.isdigit, found[0])) >= _LEAST_PHONE_DIGITS and not _are_dates(text, *found.span()):
            yield found.span()


def _are_dates(text: str, start: int, end: int) -> bool:
    """Return whether there are only dates here, and at most the hour of a time."""
    year = _YEAR_BEFORE.search(text[max(start - 6, 0) : start])
    at = start if year is None else start - len(year[0])
    while (date := _DATES.match(text, at)) is not None and date.end() < end and date["hour"] is None:
        gap = _TO_NEXT_DATE.match(text, date.end())
        if gap is None:
            return False
        at = gap.end()
    return date is not None and date.end() == end


def _addresses(text: str) -> Iterator[_Place]:
    for pattern in (_IPV4, _IPV6):
        for found in pattern.finditer(text):
            # A colon after an address belongs to the sentence.
            shown = found[0].rstrip(":") if pattern is _IPV6 and not found[0].endswith("::") else found[0]
            try:
                ip_address(shown)
            except ValueError:
                continue
            yield found.start(), found.start() + len(shown)


_FINDERS: Mapping[str, Callable[[str], Iterator[_Place]]] = {
    "email": _emails,
    "phone": _phones,
    "iban": _ibans,
    "card": _cards,
    "ip": _addresses,
}
