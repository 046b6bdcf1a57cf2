"""`llm_logprob`: how probable the LLM itself held its label to be.

The column exists if the parameters ask for logprobs. It is the natural logarithm of a probability: the sum of the
logprobs of the tokens that make up the label.

    response              the tokens of the label
    free text             all tokens of the reply
    one field             the tokens of its value: for {"topic":"billing"} those of billing, without the key's tokens
    several fields        the tokens of all values: their joint probability, each given the ones before

A token counts as a whole if it holds any character of a value. The quotes around a text are not part of the value; the
value of a list or an object is everything between its brackets. So exp(llm_logprob) is the probability of the exact
wording: if a label can be worded in several ways, the probability of the label is higher.

Null: the reply came without logprobs, or its logprobs are not of its text, for example from a server that reports other
tokens than it answers with. The probability is then unknown, and not guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import isfinite
from typing import Any

import pyarrow as pa

from dagster_llm_batch.types import Endpoint, RequestSpec, TokenLogprob

__all__ = ["INCLUDED_LOGPROBS", "LOGPROB", "NO_LOGPROBS", "asks_logprobs", "label_logprob", "read_tokens"]

INCLUDED_LOGPROBS = "message.output_text.logprobs"
"""Value of the parameter `include` of OpenAI's responses for logprobs."""

LOGPROB = pa.field("llm_logprob", pa.float64())
"""The column."""

NO_LOGPROBS = dict.fromkeys(
    ("logprobs", "top_logprobs"), "is nothing that Claude tells (anthropic 2.14.0 has no such parameter)"
)
"""Parameters that Anthropic's LLMs refuse on every platform, with the reason."""

_BLANK = re.compile(r"\s*")
_JSON = json.JSONDecoder(strict=False)


def label_logprob(text: str, tokens: Sequence[TokenLogprob], *, is_json: bool) -> float | None:
    """Return the logprob of the label in a reply with these tokens; None if they do not match the text."""
    written = text.encode("utf-8", "surrogatepass")
    if not tokens or b"".join(token.text for token in tokens) != written:
        return None
    if not is_json:
        return sum(token.logprob for token in tokens)
    try:
        spans = [_in_bytes(text, start, end) for start, end in _values(text)]
    # A reply that fits its schema is an object. Depth and the like are no reason to lose a label.
    except (ValueError, RecursionError):
        return None
    total, ends = 0.0, accumulate(len(token.text) for token in tokens)
    for token, end in zip(tokens, ends, strict=True):
        start = end - len(token.text)
        if any(start < last and end > first for first, last in spans):
            total += token.logprob
    return total


def _values(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each value of a JSON object stands in a text, in characters, without the quotes of a text."""
    # Markdown fences, with the name of a language, may stand before it.
    at = _after_blanks(text, text.index("{") + 1)
    while text[at] != "}":
        _, at = _JSON.raw_decode(text, at)
        at = _after_blanks(text, _after_blanks(text, at) + 1)
        start = at
        _, at = _JSON.raw_decode(text, start)
        inside = int(text[start] in '"[{')
        yield start + inside, at - inside
        at = _after_blanks(text, at)
        at = _after_blanks(text, at + (text[at] == ","))


def _after_blanks(text: str, at: int) -> int:
    end = _BLANK.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
    if end >= len(text):
        raise ValueError("the text ends within an object")
    return end


def _in_bytes(text: str, start: int, end: int) -> tuple[int, int]:
    first = len(text[:start].encode("utf-8", "surrogatepass"))
    return first, first + len(text[start:end].encode("utf-8", "surrogatepass"))


def read_tokens(entries: Any, text: str = "token", logprob: str = "logprob") -> list[TokenLogprob] | None:
    """Return tokens from a vendor's list of objects with these names; None if an entry is not a token.

    A token may hold part of a character: then `bytes` has its bytes, and its text only looks like it.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        return None
    tokens = []
    for entry in entries:
        value, given = (entry.get(text), entry.get(logprob)) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(value, str) or not isinstance(given, (int, float)) or isinstance(given, bool):
            return None
        # Not a JSON number: 1e999, for example, is read as infinity.
        if not isfinite(given):
            return None
        octets = entry.get("bytes")
        try:
            written = bytes(octets) if isinstance(octets, list) else value.encode("utf-8", "surrogatepass")
        except (TypeError, ValueError):
            return None
        tokens.append(TokenLogprob(written, float(given)))
    return tokens


def asks_logprobs(spec: RequestSpec) -> bool:
    """Return whether the parameters ask for the logprobs of a reply, in the words of any vendor that has some."""
    if spec.endpoint is Endpoint.RESPONSES:
        included = spec.params.get("include")
        return isinstance(included, Sequence) and INCLUDED_LOGPROBS in included
    names = ("logprobs", "responseLogprobs", "response_logprobs")
    return spec.endpoint is Endpoint.CHAT and any(spec.params.get(name) for name in names)
