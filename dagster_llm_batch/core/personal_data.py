"""Personal data in texts: e-mail addresses, phone numbers, IBANs, card numbers and IP addresses. Pure.

Found by patterns, and by check digits where a kind of number has them. To find too much is the safe side: a value that
touches other text is found with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import Literal

__all__ = ["PersonalData", "find_personal_data"]

PersonalData = Literal["email", "phone", "iban", "card", "ip"]
"""Kinds of values that are found."""

_Place = tuple[int, int]

# Each pattern takes linear time: it tries each run of characters once, from its start. Lookbehinds are few, since they
# would hide values that touch other text.
_DASHES_AND_SPACES = r"\-\u2010-\u2015 \u00a0\u2009\u202f"
_BETWEEN = rf"[.{_DASHES_AND_SPACES}]"
_IN_PHONE = rf"[()./{_DASHES_AND_SPACES}]"
_EMAIL = re.compile(
    r"""(?:(?<![\w.!#$%&'*+/=?^`{|}~-])[\w.!#$%&'*+/=?^`{|}~-]++|"(?:[^"\\\r\n]|\\.){1,64}")"""
    r"@(?:\w[\w-]*(?:\.[\w-]+)*|\[[^\]\s]{1,64}\])"
)
_DIGITS = re.compile(rf"\d+(?:{_BETWEEN}{{1,3}}\d+)*")
_IBAN = re.compile(r"[A-Za-z]{2}\d{2}")
_IBAN_GAP = re.compile(rf"{_BETWEEN}{{0,3}}")
# A zero within a number, such as 1.000.000, begins no phone number.
_PHONE = re.compile(rf"(?:[+\uff0b]|(?<!\d)(?<!\d\.)0|\(){_IN_PHONE}{{0,3}}\d+(?:{_IN_PHONE}{{1,3}}\d+)*")
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


def find_personal_data(text: str, kind: PersonalData) -> Iterator[_Place]:
    """Yield the start and the end of each value of this kind in a text. They may overlap."""
    return _FINDERS[kind](text)
