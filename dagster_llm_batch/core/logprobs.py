"""`llm_logprob`: how probable the LLM itself held its label to be.

The column is there where the parameters ask for logprobs, and says the natural logarithm of a probability: the sum of
the logprobs of those tokens that the label is made of.

    response              the tokens of the label
    free text             all tokens of the reply
    one field             the tokens of its value: for {"topic":"billing"}, those of billing, not those of the key
    several fields        the tokens of all values: the joint probability of them, each given those before it

A token counts where it holds any character of a value, and then as a whole. The quotes around a text are no part of the
value; of a list or an object, all between its brackets is. So exp(llm_logprob) is the probability of the very wording:
where a label can be worded in several ways, that of the label is higher.

Null: the reply came without logprobs, or not with those of its text, as where a server answers in other tokens than it
tells. Then nobody knows, and nothing is guessed.
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
"""What the parameter `include` of OpenAI's responses has for logprobs."""

LOGPROB = pa.field("llm_logprob", pa.float64())
"""The column."""

NO_LOGPROBS = dict.fromkeys(
    ("logprobs", "top_logprobs"), "is nothing that Claude tells (anthropic 2.14.0 has no such parameter)"
)
"""Parameters that no LLM of Anthropic's takes, wherever it runs, and why."""

_BLANK = re.compile(r"\s*")
_JSON = json.JSONDecoder(strict=False)


def label_logprob(text: str, tokens: Sequence[TokenLogprob], *, is_json: bool) -> float | None:
    """Return the logprob of the label in a reply with these tokens; None where they are not those of the text."""
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
    """Return tokens as a vendor lists them, each an object with these names; None where one is none.

    A token may hold part of a character: then `bytes` has its bytes, and its text only looks like it.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        return None
    tokens = []
    for entry in entries:
        value, given = (entry.get(text), entry.get(logprob)) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(value, str) or not isinstance(given, (int, float)) or isinstance(given, bool):
            return None
        # A number that no JSON has, as 1e999 is read.
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
