"""Keep the credentials of a provider out of everything that its verbs return: results, reports, answers and errors.

Keys in the path of an address count as credentials too; see `core/address_secrets.py`.

Vendors and gateways echo parts of requests, and their replies are stored and shown. So the exact value of each
configured credential becomes `***` where it leaves a verb, also in raw result lines before they are stored. Only values
of 16 characters or more are masked: a shorter one, such as the `x` that a server on the user's own machine takes for a
key, is in ordinary words too.

A credential is found in each form that JSON, an address, HTML or an `Authorization: Basic` header gives it, with any of
its characters escaped.

Pure. A line costs four searches for each credential: about 2 us for a line of 1 to 2 kB, on a busy machine.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache, partial, wraps
from html import escape
from typing import Any, TypeVar

from dagster_llm_batch.errors import LLMBatchError, TransientError
from dagster_llm_batch.types import BatchReport, StatusUnknown

__all__ = ["LEAST_CHARS", "Mask", "masked"]

LEAST_CHARS = 16
# of a secret, at the end of a text that was cut: fewer characters are too few to recognize
_LEAST_REST = 6
_CUT = "…".encode()
"""The end that `plain_text` puts on a text that it cut: the start of a secret may be right before it."""
_MASK = b"***"
_MOST_WORDS = 256
_ProviderClass = TypeVar("_ProviderClass", bound=type)

# An escape that a cut has shortened.
_CUT_ESCAPE = re.compile(rb"(?:%[0-9A-Fa-f]{0,3}){1,4}|(?:\\+(?:u[0-9A-Fa-f]{0,4})?){1,2}|&[#\w]{0,6}")
_JSON_LETTERS = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}
_RUNS = re.compile(r"\\+|[^\\]")
# Characters that every form leaves unescaped.
_PLAIN = re.compile(r"[A-Za-z0-9_.-]")
# Base64 around a secret, as for a user's name; the characters next to it hold bits of both.
_MOST_BEFORE = 80
_BEFORE_BASE64 = rb"(?:[A-Za-z0-9+/_-]|\\+/|%%2[BbFf]){0,%d}" % _MOST_BEFORE
_AFTER_BASE64 = rb"(?:[A-Za-z0-9+/=_-]|\\+/|%2[BbFf]|%3[Dd])*"
_BYTES_A_GROUP = 3


class Mask:
    """Put `***` in the place of these secrets, in each form that JSON or an address gives them."""

    def __init__(self, secrets: Iterable[str | None]) -> None:
        words = {word for secret in secrets if secret for word in (secret, secret.strip()) if len(word) >= LEAST_CHARS}
        self._words = [form for word in sorted(words, key=len, reverse=True) for form in _forms(word)]

    def text(self, text: str) -> str:
        """Mask the secrets in a text, and the start of one at the place where a text was cut in the middle of it."""
        masked = whole = text.encode("utf-8", "surrogatepass")
        for word in self._words:
            masked = word.mask_parts(masked)
        return text if masked is whole else masked.decode("utf-8", "surrogatepass")

    def line(self, line: bytes) -> bytes:
        """Mask the secrets in a result line. Returns the same object if it holds no secret."""
        for word in self._words:
            if word.core in line:
                line = word.whole.sub(_MASK, line)
        return line

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Mask the message of an error that leaves the block, and the answer that it carries."""
        try:
            yield
        except LLMBatchError as error:
            error.args = tuple(self.text(part) if isinstance(part, str) else part for part in error.args)
            if isinstance(error, TransientError) and error.answer is not None:
                error.answer = self.line(error.answer)
            raise


def masked(cls: _ProviderClass) -> _ProviderClass:
    """Decorate a provider's class: its verbs mask the secrets that its `_secrets()` names.

    `console_url` and `check_setup` return no secrets.
    """
    masks: Mapping[str, Callable[[Mask, Any], Any] | None] = {
        "poll": _mask_reports,
        "find": _mask_finding,
        "respond": Mask.line,
        "respond_flex": Mask.line,
        "submit": None,
        "cancel": None,
        "delete": _mask_answer,
        "delete_request_file": None,
        "count_files": None,
        "upload_document": None,
        "find_documents": None,
        "has_document": None,
        "delete_document": None,
    }
    # a provider has the verbs of some capabilities, and not of others
    for name in filter(partial(hasattr, cls), masks):
        setattr(cls, name, _verb(getattr(cls, name), masks[name]))
    cls.fetch = _fetching(cls.fetch)  # type: ignore[attr-defined]
    return cls


def _verb(verb: Callable[..., Any], mask_value: Callable[[Mask, Any], Any] | None) -> Callable[..., Any]:
    @wraps(verb)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The secrets are read at each call, since tokens are renewed. They are read after the call, since the first
        # call may have fetched the first token.
        try:
            value = verb(self, *args, **kwargs)
        except LLMBatchError:
            with Mask(self._secrets()).errors():
                raise
        return value if mask_value is None else mask_value(Mask(self._secrets()), value)

    return call


def _fetching(fetch: Callable[[Any, str], Iterator[bytes]]) -> Callable[[Any, str], Iterator[bytes]]:
    @wraps(fetch)
    def call(self: Any, batch_id: str) -> Iterator[bytes]:
        try:
            lines = fetch(self, batch_id)
            if (first := next(lines, None)) is None:
                return
            # asked for after the first call, which may have got the first token
            mask = Mask(self._secrets())
            yield mask.line(first)
            yield from map(mask.line, lines)
        except LLMBatchError:
            with Mask(self._secrets()).errors():
                raise

    return call


def _mask_reports(mask: Mask, reports: Mapping[str, BatchReport]) -> Mapping[str, BatchReport]:
    return {
        batch_id: replace(report, reason=mask.text(report.reason)) if report.reason else report
        for batch_id, report in reports.items()
    }


def _mask_answer(mask: Mask, answer: str | None) -> str | None:
    return None if answer is None else mask.text(answer)


def _mask_finding(mask: Mask, finding: Any) -> Any:
    return replace(finding, reason=mask.text(finding.reason)) if isinstance(finding, StatusUnknown) else finding


class _Word:
    """A secret, or its Base64, in any written form.

    A text may escape any of its characters, and another text other ones: so each character is searched in all its forms
    independently.

    Args:
        word: The characters.
        before: A pattern of text before it that is masked with it.
        after: A pattern of text after it that is masked with it.
    """

    def __init__(self, word: str, before: bytes = b"", after: bytes = b"") -> None:
        # A text with more escapes has more backslashes, so adjacent ones count as one.
        self._chars = [_pattern(char) for char in _RUNS.findall(word)]
        self._before, self._after = before, after
        # By the longest part that is the same in every form: nearly no line holds it, so one search for each is all
        # that a line costs.
        self.core = max(re.split("[^A-Za-z0-9]+" if before else "[^A-Za-z0-9_.-]+", word), key=len).encode()

    @cached_property
    def whole(self) -> re.Pattern[bytes]:
        """All of it."""
        return re.compile(self._before + b"".join(self._chars) + self._after)

    @cached_property
    def _sides(self) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
        return re.compile(self._before + rb"\Z"), re.compile(self._after)

    def _first(self, count: int) -> re.Pattern[bytes]:
        """Return a pattern of its first characters."""
        return re.compile(b"".join(self._chars[:count]))

    @cached_property
    def _cut(self) -> re.Pattern[bytes]:
        """A start of it at the end of a text: too short a one for `_start`."""
        least, more = self._chars[:_LEAST_REST], self._chars[_LEAST_REST : LEAST_CHARS - 1]
        pattern = b""
        for char in reversed(more):
            pattern = b"(?:" + char + pattern + b")?"
        return re.compile(b"".join(least) + pattern + b"(?:" + _CUT_ESCAPE.pattern + rb")?\Z")

    def mask_parts(self, text: bytes) -> bytes:
        """Mask it wherever 16 characters of it or more occur, and where the text ends with its first characters.

        Returns the same object if it holds no secret.
        """
        parts, done = [], 0
        while found := self._first(LEAST_CHARS).search(text, done):
            before, after = self._sides
            start, end = self._longest(text, found).span()
            for more in (before.search(text, max(done, start - _MOST_BEFORE), start), after.match(text, end)):
                start, end = (min(start, more.start()), max(end, more.end())) if more else (start, end)
            parts += [text[done:start], _MASK]
            done = end
        kept = text[done:].removesuffix(_CUT)
        # The first character of an escape that was cut may have been matched as the secret's own next one.
        begun = text[done - 1 : done] if text[done - 1 : done] in (b"%", b"\\", b"&") else b""
        if parts and (_CUT_ESCAPE.fullmatch(kept) or (begun and _CUT_ESCAPE.fullmatch(begun + kept))):
            return b"".join(parts)
        if cut := self._cut.search(kept):
            return b"".join((*parts, kept[: cut.start()], _MASK))
        return b"".join((*parts, text[done:])) if parts else text

    def _longest(self, text: bytes, found: re.Match[bytes]) -> re.Match[bytes]:
        """Return the longest match of its characters from the place where its first ones were found."""
        least, most = LEAST_CHARS, len(self._chars)
        if whole := self._first(most).match(text, found.start()):
            return whole
        while least < most:
            middle = (least + most + 1) // 2
            if more := self._first(middle).match(text, found.start()):
                found, least = more, middle
            else:
                most = middle - 1
        return found


@lru_cache(_MOST_WORDS)
def _forms(word: str) -> tuple[_Word, ...]:
    """Return the secret itself, and its Base64 within a longer text, as of `user:key`: one form for each of three
    offsets.
    """
    encoded = []
    secret = word.encode("utf-8", "surrogatepass")
    for offset in range(_BYTES_A_GROUP):
        whole = b64encode(bytes(offset) + secret).decode().rstrip("=")
        # Characters that hold bits of the text before or after it are others in each text.
        first, last = -(-offset * 8 // 6), (offset + len(secret)) * 8 // 6
        encoded.append(_Word(whole[first:last], _BEFORE_BASE64, _AFTER_BASE64))
    return (_Word(word), *encoded)


@lru_cache(_MOST_WORDS)
def _pattern(run: str) -> bytes:
    """Return a pattern of a character, or of backslashes, plain or escaped (once or twice) for JSON, URLs and HTML."""
    char, own = run[0], run.encode("utf-8", "surrogatepass")
    if _PLAIN.fullmatch(char):
        return re.escape(own)
    octets = b"".join(rb"%%(?:25)*%02X" % octet for octet in char.encode("utf-8", "surrogatepass"))
    halves = char.encode("utf-16-be", "surrogatepass")
    units = b"".join(rb"\\*u%02x%02x" % (high, low) for high, low in zip(halves[::2], halves[1::2], strict=True))
    escaped = [octets, units, b"&#0*%d;" % ord(char), b"&#x0*%x;" % ord(char)]
    if (name := escape(char)) != char:
        escaped.append(re.escape(name.encode()))
    ways = [b"(?i:" + way + b"){%d}" % len(run) for way in escaped]
    if char in _JSON_LETTERS:
        ways.append(rb"\\*" + _JSON_LETTERS[char].encode())
    if char.isspace():
        # Code that puts a text on one line turns several spaces into one.
        ways += [rb"\s+", rb"\+"]
    # In the place of these, Base64 has others in addresses.
    if char in "+/":
        ways.append(b"-" if char == "+" else b"_")
    # last, since an escape may begin with it
    ways.append(rb"\\{%d,}" % len(run) if char == "\\" else rb"\\*" + re.escape(own))
    return b"(?:" + b"|".join(ways) + b")"
