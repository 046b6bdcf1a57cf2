"""The credentials of a provider, kept out of all that its verbs give: results, reports, answers and errors.

Vendors and gateways echo what was sent to them, and what they say is stored and shown. So the exact value of each
configured credential becomes `***` where it leaves a verb, also in raw result lines before they are stored. Only values
of 16 characters or more are masked: a shorter one, such as the `x` that a server on one's own machine takes for a key,
is in ordinary words too.

Pure. A line costs one search for each credential: about 1 us for a line of 1 to 2 kB, on a busy machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar
from urllib.parse import quote

from dagster_llm_batch.errors import LLMBatchError, TransientError
from dagster_llm_batch.types import BatchReport, CannotTell

__all__ = ["LEAST_CHARS", "Mask", "masked"]

LEAST_CHARS = 16
# of a secret, at the end of a text that was cut: fewer characters tell nothing
_LEAST_REST = 6
_CUT = "…"
"""What `plain_text` ends a text with that it cut: the start of a secret may stand right before it."""
_MASK = "***"
_ProviderClass = TypeVar("_ProviderClass", bound=type)


class Mask:
    """Put `***` in the place of these secrets, in each form that JSON or an address gives them."""

    def __init__(self, secrets: Iterable[str | None]) -> None:
        words = {word for secret in secrets if secret for word in (secret, secret.strip()) if len(word) >= LEAST_CHARS}
        self._texts = sorted({form for word in words for form in _forms(word)}, key=len, reverse=True)
        # By the part of a secret that is the same in every form: nearly no line holds one, so one search for each
        # secret is all that a line costs.
        self._lines = {_core(word).encode(): [form.encode() for form in _forms(word)] for word in words}

    def text(self, text: str) -> str:
        """Mask the secrets in a text, and the start of one at the place where a text was cut in the middle of it."""
        for secret in self._texts:
            start = secret[:LEAST_CHARS]
            at = text.find(start)
            while at >= 0:
                end = LEAST_CHARS
                while end < len(secret) and text[at + end : at + end + 1] == secret[end]:
                    end += 1
                text = f"{text[:at]}{_MASK}{text[at + end :]}"
                at = text.find(start, at + len(_MASK))
            kept = text.removesuffix(_CUT)
            rest = next((n for n in range(LEAST_CHARS - 1, _LEAST_REST - 1, -1) if kept.endswith(secret[:n])), 0)
            text = f"{kept[:-rest]}{_MASK}" if rest else text
        return text

    def line(self, line: bytes) -> bytes:
        """Mask the secrets in a result line. It is the same object where it holds none."""
        for core, forms in self._lines.items():
            if core in line:
                for form in forms:
                    line = line.replace(form, _MASK.encode())
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
    """Decorate a provider's class: its verbs give none of the secrets that its `_secrets()` names."""
    for name, mask_value in {
        "poll": _mask_reports,
        "find": _mask_finding,
        "respond": Mask.line,
        "submit": None,
        "cancel": None,
    }.items():
        setattr(cls, name, _verb(getattr(cls, name), mask_value))
    cls.fetch = _fetching(cls.fetch)  # type: ignore[attr-defined]
    return cls


def _verb(verb: Callable[..., Any], mask_value: Callable[[Mask, Any], Any] | None) -> Callable[..., Any]:
    @wraps(verb)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The secrets are asked for at each call, since tokens are renewed; and after the call, since the first one may
        # have got the first token.
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


def _mask_finding(mask: Mask, finding: Any) -> Any:
    return replace(finding, reason=mask.text(finding.reason)) if isinstance(finding, CannotTell) else finding


def _forms(word: str) -> Sequence[str]:
    escaped = json.dumps(word)[1:-1]
    return tuple(dict.fromkeys((word, escaped, escaped.replace("/", "\\/"), quote(word, safe=""))))


def _core(word: str) -> str:
    """Return the longest part that nothing escapes; all of it where that is short."""
    longest = max(re.findall(r"[A-Za-z0-9_.-]+", word), key=len, default="")
    return longest if len(longest) >= _LEAST_REST else word
