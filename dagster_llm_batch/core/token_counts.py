"""Count the tokens of a request before it is sent: the expected number, and the largest possible one.

**Expected** input follows rates. A byte after another costs a number of hundredths of a token, which depends on the
kind of both characters. A character beyond ASCII costs the rate of its script. The rates are fitted to real tokenizers,
which spend a token on a word of English, on a third of a UUID's group, and on each byte of a script that they hardly
cover. Only a stretch of a long text is counted, since a plan counts millions of texts.

**The bound** of input holds for every text: a tokenizer with a token for each byte never makes more tokens of a text
than it has bytes. That is documented for OpenAI (tiktoken), Llama, Mistral, Qwen and DeepSeek. Gemini has the tokenizer
of Gemma, whose report documents it. Anthropic and Amazon have no such document. Claude's published tokenizer (2023) has
a token for each byte, too, but first normalizes a text (NFKC), which can make it longer: the larger count of both
forms is used. The frame comes on top: roles, the prompt that a vendor adds for tools or a schema, and images by the
vendors' formulas (`media_tokens`). A request whose input exceeds the model's context is neither answered nor billed.

The bound of output is the caller's own maximum, under its name in the vendor's body; it includes thinking at OpenAI,
Anthropic and Google. Without one it is the model's maximum, from the dated table below, or the model's whole context.

None: unknown, for example for a tool that runs at the vendor and reads pages of any length into the request.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, canonical_json, packed
from dagster_llm_batch.core.media_tokens import OPENAI_BOOKS, InputTokens, document_tokens, media_tokens
from dagster_llm_batch.core.token_rates import (
    BEYOND,
    END_OF_ASCII,
    KIND_OF,
    KINDS,
    PAIRS,
    SCRIPTS,
    TOKENIZERS,
    UNMEASURED,
)
from dagster_llm_batch.types import Request, RequestSpec, ResponseKind

__all__ = [
    "MAXIMA",
    "InputCounter",
    "InputCounts",
    "OutputTokens",
    "TextCosts",
    "given_settings",
    "model_max_output",
    "most_hundredths",
    "output_basis",
    "output_tokens",
]


@dataclass(frozen=True, slots=True)
class InputCounts:
    """Input tokens of several requests, in their order: see InputTokens."""

    expected: Sequence[int]
    bounds: Sequence[int | None]

    def slice(self, start: int, end: int) -> InputCounts:
        """Return the counts from `start` to before `end`."""
        return InputCounts(self.expected[start:end], self.bounds[start:end])

    def take(self, places: Sequence[int]) -> InputCounts:
        """Return the counts at these places."""
        return InputCounts([self.expected[at] for at in places], [self.bounds[at] for at in places])


_NOTHING = InputTokens(0, 0)


class OutputTokens(NamedTuple):
    """Output tokens of one request, thinking included: expected, what 19 of 20 stay below, and the most there can be.

    The bound is None if it is unknown.
    """

    expected: int
    p95: int
    bound: int | None


NO_OUTPUT = OutputTokens(0, 0, 0)


# From a row's text, one stretch of so many characters is counted, and one in so many of a long text. The rest is taken
# to be like them: the errors cancel out over many rows. The request_id decides where they begin, so that a request has
# the same count everywhere.
_LOOKED_AT, _ONE_IN = 32, 32

# So many texts a tokenizer counts, and characters of each: some hundredths of a second.
_CALIBRATED_TEXTS, _CALIBRATED_BY = 256, 400

# The frame of a message, and of a request: its role, and marks of its beginning and end. OpenAI: 3 a message and 3 for
# the reply (https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken_toolkit). The bounds have room for
# vendors without such a document.
_MESSAGE, _MOST_MESSAGE = 4, 16
_REQUEST, _MOST_REQUEST = 3, 64

_SYSTEM = InputTokens(_MESSAGE, _MOST_MESSAGE)

# The prompt that a vendor adds for tools or a schema. Anthropic's for tools has up to 530 tokens
# (https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview#pricing); others do not document it.
_MOST_ADDED = 1_024


def tokenizer_of(book: str | None, model: str) -> str:
    """Return whose rates hold for a model. `book`: the price book's id of its vendor."""
    name = model.lower()
    if "claude" in name:
        return "claude"
    if re.search("gemini|gemma", name):
        return "gemma"
    # Llama's is an extension of the tokenizer that OpenAI had before gpt-4o.
    is_older = re.search(r"gpt-3|gpt-4(?![o.\d])|embedding|davinci|babbage", name)
    return "o200k" if (book in OPENAI_BOOKS and not is_older) or "gpt-oss" in name else "llama"


_Counts = npt.NDArray[np.int64]

_WIDTH = KINDS + len(SCRIPTS) + 1


class _Rates:
    """The rates of one tokenizer, in hundredths, as a table to look many characters up in."""

    def __init__(self, tokenizer: str) -> None:
        pairs, column = PAIRS[tokenizer], TOKENIZERS.index(tokenizer)
        scripts = [*(rates[column] for *_, rates in SCRIPTS), UNMEASURED]
        table = np.rint(np.array([[*row, *scripts] for row in pairs]) * 100).astype(np.float32)
        self._table = table.ravel()
        # Of two bytes of ASCII that follow each other, read as one little-endian number.
        kinds = _kind_table()[:END_OF_ASCII]
        of_bytes = np.zeros((256, 256), np.float32)
        of_bytes[:END_OF_ASCII, :END_OF_ASCII] = table[np.ix_(kinds, kinds)].T
        self._of_bytes = of_bytes.ravel()
        self.most_of_ascii, self.most = int(of_bytes.max()), int(table.max())

    def of(self, characters: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the cost of each character, along the last axis; the first one only precedes the second.

        ASCII characters are bytes, others code points.
        """
        if characters.dtype == np.uint8:
            # One look-up for each character, and no array in between: a row takes an eighth of the time so.
            shape = (*characters.shape[:-1], characters.shape[-1] - 1)
            follow = np.ndarray(shape, "<u2", np.ascontiguousarray(characters), strides=characters.strides)
            of_bytes: npt.NDArray[np.float32] = self._of_bytes.take(follow)
            return of_bytes
        kinds = np.where(characters < END_OF_ASCII, _kind_table()[characters & 127], _script_table()[characters >> 4])
        pairs = np.minimum(kinds[..., :-1], BEYOND).astype(np.uint16)
        pairs *= _WIDTH
        pairs += kinds[..., 1:]
        costs: npt.NDArray[np.float32] = self._table.take(pairs)
        return costs


def _characters_of(text: str) -> npt.NDArray[Any]:
    """Return the characters of a text: bytes of ASCII, else code points."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@lru_cache(maxsize=1)
def _kind_table() -> npt.NDArray[np.uint8]:
    return np.frombuffer(KIND_OF, np.uint8)


@lru_cache(maxsize=1)
def _script_table() -> npt.NDArray[np.uint8]:
    """Return the column of each script in a table of rates, by code point divided by 16."""
    columns = np.full(0x110000 >> 4, KINDS + len(SCRIPTS), np.uint8)
    for number, (first, end, _) in enumerate(SCRIPTS):
        columns[first >> 4 : end >> 4] = KINDS + number
    return columns


@lru_cache(maxsize=len(TOKENIZERS))
def _rates(tokenizer: str) -> _Rates:
    return _Rates(tokenizer)


def expected_text_tokens(texts: Sequence[str], tokenizer: str, seeds: _Counts | None = None) -> _Counts:
    """Return the approximate number of tokens of each text.

    `seeds`, random numbers, set the start of the stretch that is counted of each text.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if not texts:
        return lengths
    if seeds is None:
        return _rounded_up(_sums(texts, tokenizer), lengths, lengths)
    looked_at = np.minimum(lengths, np.maximum(lengths // _ONE_IN, _LOOKED_AT))
    starts = seeds % np.maximum(lengths - looked_at, 1)
    is_usual = (lengths > _LOOKED_AT) & (looked_at == _LOOKED_AT)
    sums = np.empty(len(texts), np.int64)
    usual, others = np.flatnonzero(is_usual), np.flatnonzero(~is_usual)
    # For ASCII the others are counted, too, and overwritten: selecting the usual ones would take longer.
    if not len(others) or (len(usual) and all(map(str.isascii, texts))):
        sums = _sums_of_stretches(texts, lengths, starts, tokenizer)
    elif len(usual):
        chosen = [texts[at] for at in usual.tolist()]
        sums[usual] = _sums_of_stretches(chosen, lengths[usual], starts[usual], tokenizer)
    if not len(others):
        return _rounded_up(sums, lengths, looked_at)
    places = zip(others.tolist(), starts[others].tolist(), looked_at[others].tolist(), strict=True)
    # A stretch that is not all of its text begins a character earlier, which costs nothing; see `_Rates.of`.
    cut = [(texts[at][start : start + 1 + count], count < len(texts[at])) for at, start, count in places]
    sums[others] = _sums([text for text, _ in cut], tokenizer, np.array([is_cut for _, is_cut in cut], np.bool_))
    return _rounded_up(sums, lengths, looked_at)


def _rounded_up(hundredths: _Counts, lengths: _Counts, looked_at: _Counts) -> _Counts:
    """Return the tokens of texts from the counts of their stretches."""
    counts: _Counts = -(-hundredths * lengths // (np.maximum(looked_at, 1) * 100))
    return counts


def _sums(texts: Sequence[str], tokenizer: str, are_cut: npt.NDArray[np.bool_] | None = None) -> _Counts:
    """Return the cost of all characters of each text, without the first one of those that are cut."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    begins = np.concatenate(([0], ends[:-1]))
    # Each begins as after a space.
    hundredths = _rates(tokenizer).of(_characters_of(" ".join(["", *texts, ""]))).astype(np.int64)
    hundredths[ends - 1] = 0
    if are_cut is not None:
        hundredths[begins[are_cut]] = 0
    sums: _Counts = np.add.reduceat(hundredths, begins) if len(texts) else ends
    return sums


_ONES = np.ones(_LOOKED_AT, np.float32)


def _sums_of_stretches(texts: Sequence[str], lengths: _Counts, starts: _Counts, tokenizer: str) -> _Counts:
    """Return the cost of a stretch of each text, after the character at its start."""
    width = _LOOKED_AT + 1
    if all(map(str.isascii, texts)):
        whole = "".join(texts).encode("ascii")
        begins = np.cumsum(lengths)
        begins += starts - lengths
        # A text shorter than a stretch may end the whole.
        begins = np.minimum(begins, len(whole) - width)
        # All stretches of the whole, each as one value: to take some of these copies whole stretches.
        windows = np.ndarray((len(whole) - _LOOKED_AT,), f"V{width}", whole, strides=(1,))
        stretches = windows[begins].view(np.uint8)
    else:
        # Code points take four times the memory: of all texts it would be new each time, which takes longer than this.
        cut = [text[start : start + width] for text, start in zip(texts, starts.tolist(), strict=True)]
        stretches = _characters_of("".join(cut))
    # Sums of hundredths are whole numbers, far below those that float32 has no exact value of.
    sums: _Counts = (_rates(tokenizer).of(stretches.reshape(len(texts), width)) @ _ONES).astype(np.int64)
    return sums


def most_hundredths(text: str, tokenizer: str) -> int:
    """Return the largest possible cost of one character of a text, as TextCosts counts it, in hundredths of a token."""
    rates = _rates(tokenizer)
    return rates.most_of_ascii if text.isascii() else rates.most


class TextCosts:
    """The approximate cost of any slice of one text, as `expected_text_tokens` counts the slice by itself."""

    def __init__(self, text: str, tokenizer: str) -> None:
        rates, characters = _rates(tokenizer), _characters_of(f" {text}")
        # In hundredths. A slice begins as after a space, so its first character costs what it would there.
        self._sums = np.concatenate(([0], np.cumsum(rates.of(characters).astype(np.int64))))
        spaces = np.full_like(characters[1:], ord(" "))
        self._firsts = rates.of(np.stack([spaces, characters[1:]], axis=-1))[..., 0].astype(np.int64)

    def end_of(self, start: int, tokens: int) -> int:
        """Return the end of the longest slice from `start` with at most so many tokens."""
        if start >= len(self._firsts):
            return start
        # The sums up to the end of the first character, without its cost within the text.
        own = self._sums[start + 1] - self._firsts[start]
        end = int(np.searchsorted(self._sums, own + tokens * 100, "right")) - 1
        return max(end, start)

    def start_of(self, end: int, tokens: int) -> int:
        """Return the start of the longest slice up to `end` with at most so many tokens."""
        starts = np.arange(max(end - tokens * _MOST_CHARACTERS_OF_TOKEN, 0), end)
        costs = self._sums[end] - self._sums[starts + 1] + self._firsts[starts]
        fit = np.flatnonzero(costs <= tokens * 100)
        return int(starts[fit[0]]) if len(fit) else end


# More characters are not looked at for each token.
_MOST_CHARACTERS_OF_TOKEN = 16


def most_text_tokens(texts: Sequence[str], tokenizer: str) -> _Counts:
    """Return the largest possible number of tokens of each text."""
    if all(map(str.isascii, texts)):
        return np.fromiter(map(len, texts), np.int64, len(texts))
    sizes = [len(text) if text.isascii() else _most_bytes(text, tokenizer) for text in texts]
    return np.array(sizes, np.int64)


def _most_bytes(text: str, tokenizer: str) -> int:
    size = len(text.encode("utf-8", "surrogatepass"))
    if tokenizer != "claude" or unicodedata.is_normalized("NFKC", text):
        return size
    return max(size, len(unicodedata.normalize("NFKC", text).encode("utf-8", "surrogatepass")))


# Parameters that put text stored at the vendor before the request. The model's context still limits the input.
_STORED = ("cached_content", "cachedContent", "previous_response_id", "conversation", "prompt")

# Tools that the caller runs. All others run at the vendor, which asks the model again with their results.
_OWN_TOOLS = frozenset({"function", "custom"})
_OWN_DECLARATIONS = frozenset(
    {"functionDeclarations", "function_declarations", "toolSpec", "cachePoint", "cache_control"}
)


class InputCounter:
    """Count the input tokens of requests that share a spec.

    Args:
        book: The price book's id of the model's vendor; None for models without a bill.
        spec: The properties that the requests share.
        context: The model's context in tokens; None if unknown.
        exact: The model's own tokenizer, if available: returns the tokens of each text. It would take most of the time
            of a plan, so it counts only the text that all requests share, and some of the first texts. The ratio to
            their rates is applied to the other texts.

    Without `exact` a request has the same count everywhere. Pickling drops it: workers do not need it.
    """

    def __init__(
        self,
        book: str | None,
        spec: RequestSpec,
        context: int | None,
        exact: Callable[[Sequence[str]], Sequence[int]] | None = None,
    ) -> None:
        self._book, self._model, self._params, self._context = book, spec.model, spec.params, context
        self._tokenizer, self._exact = tokenizer_of(book, spec.model), exact
        self._ratio: float | None = None
        self._frame = InputTokens(0, _MOST_MESSAGE) if _makes_no_text(spec) else self._frame_of(spec)
        # Of the system part before: mostly, all requests have the same.
        self._last_system: tuple[str | None, tuple[_Counts, _Counts]] = (None, self._texts([""], _SYSTEM))
        self._is_open = "mcp_servers" in spec.params or any(map(_runs_at_vendor, _tools(spec.params)))
        self._is_stored = any(spec.params.get(name) is not None for name in _STORED)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_exact": None}

    def _frame_of(self, spec: RequestSpec) -> InputTokens:
        """Return the tokens of the parts of every request other than its own texts and images."""
        structured = [value for value in spec.params.values() if isinstance(value, (Mapping, list, tuple))]
        if spec.response.json_schema is not None:
            structured.append(spec.response.json_schema)
        texts = [*(turn.text for turn in spec.turns), *map(canonical_json, structured)]
        messages = len(spec.turns) + 1
        expected, most = self._texts(texts, _NOTHING)
        return InputTokens(
            int(expected.sum()) + messages * _MESSAGE + _REQUEST,
            int(most.sum()) + messages * _MOST_MESSAGE + _MOST_REQUEST + (_MOST_ADDED if structured else 0),
        )

    def count(self, requests: Sequence[Request]) -> InputCounts:
        """Return the input tokens of each request."""
        if not requests:
            return InputCounts((), ())
        ids, systems, users, images, documents = zip(*requests, strict=True)
        seeds = np.frombuffer(packed(ids), ">u4")[:: REQUEST_ID_BYTES // 4].astype(np.int64)
        expected, bounds = self._texts(users, self._frame, seeds)
        if any(systems):
            is_same = len(set(systems)) == 1
            more, most = (
                self._system(systems[0]) if is_same else self._texts([s or "" for s in systems], _SYSTEM, seeds)
            )
            expected, bounds = expected + more, bounds + most
        if any(images) or any(documents):
            return self._with_files(expected, bounds, requests)
        if self._is_open or self._is_stored:
            return InputCounts(expected.tolist(), [self._limited(None)] * len(requests))
        limited = bounds if self._context is None else np.minimum(bounds, self._context)
        return InputCounts(expected.tolist(), limited.tolist())

    def bound_of_line(self, line: bytes, *, has_files: bool) -> int | None:
        """Return the most input tokens of an encoded request; None if unknown.

        All texts of the request are in its line.
        """
        if has_files:
            return None if self._is_open else self._context
        if line.isascii() and rb"\u" not in line:
            # An ASCII text is no longer than the line that holds it, however escaped. A plan asks it of each row.
            most = len(line)
        else:
            text = json.dumps(json.loads(line), ensure_ascii=False)
            most = int(most_text_tokens([text], self._tokenizer)[0])
        return self._limited(most + (self._frame.bound or 0))

    def _system(self, text: str) -> tuple[_Counts, _Counts]:
        known, counts = self._last_system
        if known != text:
            counts = self._texts([text], _SYSTEM)
            self._last_system = (text, counts)
        return counts

    def _with_files(self, expected: _Counts, bounds: _Counts, requests: Sequence[Request]) -> InputCounts:
        own, limits = expected.tolist(), []
        for place, (most, request) in enumerate(zip(bounds.tolist(), requests, strict=True)):
            media = [media_tokens(self._book, self._model, self._params, image) for image in request.images]
            media += [document_tokens(self._book, self._model, self._params, one) for one in request.documents]
            own[place] += sum(count.expected for count in media)
            known = [count.bound for count in media if count.bound is not None]
            limits.append(self._limited(most + sum(known) if len(known) == len(media) else None))
        return InputCounts(own, limits)

    def _texts(self, texts: Sequence[str], frame: InputTokens, seeds: _Counts | None = None) -> tuple[_Counts, _Counts]:
        """Return the expected tokens of each text and its frame, and their largest possible number."""
        most = most_text_tokens(texts, self._tokenizer)
        if self._exact is not None and seeds is None:
            expected = np.array(self._exact(texts), np.int64)
        else:
            expected = expected_text_tokens(texts, self._tokenizer, seeds)
            if self._exact is not None:
                expected = np.rint(expected * self._times_the_rates(texts)).astype(np.int64)
        return np.minimum(expected, most) + frame.expected, most + (frame.bound or 0)

    def _times_the_rates(self, texts: Sequence[str]) -> float:
        """Return the ratio of the tokenizer's count to the rates' count, for some of the first texts."""
        if self._ratio is None and self._exact is not None:
            some = [text[:_CALIBRATED_BY] for text in texts[:_CALIBRATED_TEXTS]]
            rated = int(expected_text_tokens(some, self._tokenizer).sum())
            self._ratio = sum(self._exact(some)) / rated if rated else None
        return 1.0 if self._ratio is None else self._ratio

    def _limited(self, bound: int | None) -> int | None:
        """Return the bound of a request whose own texts and images have this one; None: that is not known."""
        if self._is_open:
            return None
        if self._is_stored or bound is None:
            return self._context
        return bound if self._context is None else min(bound, self._context)


def _makes_no_text(spec: RequestSpec) -> bool:
    return spec.response.kind in (ResponseKind.EMBEDDING, ResponseKind.MODERATION)


# Marks in the vendors' bodies of text to keep in the cache for later requests.
_CACHE_MARKS = ("cache_control", "cachePoint", "prompt_cache_breakpoint")


def writes_cache(spec: RequestSpec) -> bool:
    """Return whether the requests ask the vendor to keep a part of them, which can cost more than other input."""
    settings = canonical_json(dict(spec.params))
    return spec.cache_prefix or any(mark in settings for mark in _CACHE_MARKS)


def _tools(params: Mapping[str, Any]) -> list[Any]:
    tools = params.get("tools") or params.get("toolConfig", {}).get("tools") or []
    return list(tools) if isinstance(tools, (list, tuple)) else [tools]


def _runs_at_vendor(tool: Any) -> bool:
    """Return whether a tool is one of the vendor's, as a search, and not a function of the caller's."""
    if not isinstance(tool, Mapping):
        return True
    if "type" in tool:
        return tool["type"] not in _OWN_TOOLS
    return "input_schema" not in tool and not _OWN_DECLARATIONS.issuperset(tool)


# Maxima of a reply without a maximum by the caller, by the model's name. The first match holds. Copied in part from
# litellm's table (MIT, (c) Berri AI): MOST_OUTPUT of `core/price_sources.py`. If platforms differ, the largest.
_MOST_OUTPUT = tuple(
    (re.compile(pattern), tokens)
    for pattern, tokens in (
        (r"gpt-5-pro", 272_000),
        (r"gpt-6\.1-sol", 131_072),
        (r"gpt-5(\.\d+)?-chat|gpt-audio|search-preview", 16_384),
        (r"gpt-[56]", 128_000),
        (r"gpt-4\.1", 32_768),
        (r"gpt-4o-2024-05-13", 4_096),
        (r"gpt-4o", 16_384),
        (r"gpt-4-(turbo|1106|0125)|gpt-3\.5", 4_096),
        (r"^(ft:)?o1-mini", 65_536),
        (r"^(ft:)?o(1|3|4-mini)(-|$)", 100_000),
        (r"claude-(fable|mythos)|claude-(opus|sonnet|haiku)-(5|4-[6-9])|claude-3-7", 128_000),
        (r"claude-(opus|sonnet|haiku)-4-5|claude-sonnet-4", 64_000),
        (r"claude-opus-4", 32_000),
        (r"claude-3-5", 8_192),
        (r"claude-3", 4_096),
        (r"gemini-2\.5.*-tts", 16_384),
        (r"gemini-(2\.5|3)|gemini-(flash|flash-lite|pro)-latest", 65_536),
        (r"gemini-(2\.0|1\.5)", 8_192),
        (r"nova-2", 65_536),
        (r"nova-(micro|lite|pro|premier)", 10_000),
        (r"meta\.llama[34]", 8_192),
        (r"openai\.gpt-oss", 16_384),
    )
)


def model_max_output(model: str) -> int | None:
    """Return the most tokens of one reply of the model, or None if the table does not have it."""
    name = model.lower()
    return next((tokens for pattern, tokens in _MOST_OUTPUT if pattern.search(name)), None)


MAXIMA = (
    *("max_completion_tokens", "max_output_tokens", "maxOutputTokens", "max_tokens", "maxTokens", "max_new_tokens"),
    *("max_gen_len", "maxTokenCount", "max_tokens_to_sample"),
)
"""The caller's maximum of output tokens, as the vendors' bodies name it."""

# The objects within which some of them have it.
_AROUND = (
    *("inferenceConfig", "inference_config", "textGenerationConfig", "generationConfig", "generation_config"),
    "additionalModelRequestFields",
)

# Models that think before they reply unless a setting turns it off.
_THINKS = re.compile(r"^(ft:)?o[134](-|$)|gpt-[56](?!.*-chat)|gpt-oss|gemini-(2\.5(?!-flash-lite)|[3-9])|deepseek.*r1")

# Used without a length from the caller or the ledger. These are rough, and short-lived: the expected length is measured
# once there are replies.
_EXPECTED_TEXT = 1_024
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_EXPECTED_THINKING = dict(zip(_EFFORTS, (0, 128, 512, 1_024, 4_096, 8_192, 8_192), strict=True))
_TOKENS_OF_TEXT_FIELD, _ITEMS, _DEEPEST = 16, 3, 8
_TIMES_FOR_P95 = 4


def output_tokens(
    spec: RequestSpec, context: int | None, said: int | None = None, default: int | None = None
) -> OutputTokens:
    """Return the output tokens of each request with this spec.

    Args:
        spec: The properties that the requests share.
        context: The model's context in tokens; None if unknown.
        said: The user's expected length of a reply.
        default: The length at which the server ends a reply without a maximum; None: the model's own maximum.

    The bound is the caller's maximum, else the model's, else `context`. Without a length from the user, a reply is
    expected to be as long as the caller's maximum; without one, the schema's length plus the model's thinking.
    """
    if _makes_no_text(spec):
        return NO_OUTPUT
    # Labeling has refused any that is no whole number from 1 on.
    own = max((value for _, value in given_settings(spec.params)), default=None)
    of_model = model_max_output(spec.model)
    if default is not None:
        of_model = default if of_model is None else min(default, of_model)
    limit = own if own is not None else of_model
    bound = context if limit is None else limit
    expected = own if said is None else said
    if expected is None:
        schema = spec.response.json_schema
        reply = _EXPECTED_TEXT if schema is None else _reply_tokens(schema, schema, _DEEPEST)
        expected = reply + _thinking_tokens(spec)
    p95 = expected * _TIMES_FOR_P95
    if bound is not None:
        expected, p95 = min(expected, bound), min(p95, bound)
    return OutputTokens(expected, p95, bound)


def output_basis(spec: RequestSpec, expected: int, said: int | None = None) -> str | None:
    """Return in words the basis of the expected output of a request; None without output."""
    if _makes_no_text(spec):
        return None
    taken = f"output taken as {expected:,} tokens a row"
    if said is not None:
        return f"{taken}, as Spend(expected_output_tokens={said}) has it"
    if any(given_settings(spec.params)):
        return f"output taken as your maximum of {expected:,} tokens a row"
    return f"{taken}, a rough guess from the {'prompt' if spec.response.json_schema is None else 'response'} alone"


def given_settings(params: Mapping[str, Any], names: Sequence[str] = MAXIMA) -> Iterator[tuple[str, Any]]:
    """Yield the settings of these names that are given, also within the objects that some vendors' bodies have."""
    for name in names:
        if (value := params.get(name)) is not None:
            yield name, value
    for name in _AROUND:
        if isinstance(inner := params.get(name), Mapping):
            yield from given_settings(inner, names)


def _thinking_tokens(spec: RequestSpec) -> int:
    """Return the approximate number of tokens that the model spends on thinking."""
    params = spec.params
    reasoning = params.get("reasoning")
    effort = params.get("reasoning_effort") or (reasoning.get("effort") if isinstance(reasoning, Mapping) else None)
    if effort in _EXPECTED_THINKING:
        return _EXPECTED_THINKING[effort]
    for name in ("thinking", "thinkingConfig", "thinking_config"):
        if isinstance(setting := params.get(name), Mapping):
            budgets = (setting.get(key) for key in ("budget_tokens", "thinkingBudget", "thinking_budget"))
            budget = next((value for value in budgets if isinstance(value, int) and value >= 0), None)
            return _EXPECTED_THINKING["medium"] if budget is None else budget // 2
    return _EXPECTED_THINKING["medium"] if _THINKS.search(spec.model.lower()) else 0


def _reply_tokens(schema: Any, root: Mapping[str, Any], depth: int) -> int:
    """Return the approximate number of tokens of a value of a JSON Schema."""
    if not isinstance(schema, Mapping) or depth == 0:
        return _TOKENS_OF_TEXT_FIELD
    if isinstance(reference := schema.get("$ref"), str):
        found: Any = root
        for part in reference.removeprefix("#").strip("/").split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        return _reply_tokens(found, root, depth - 1)
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return max(_reply_tokens(one, root, depth - 1) for one in schema[name])
    if "const" in schema or "enum" in schema:
        values = [canonical_json(value) for value in schema.get("enum", [schema.get("const")])]
        return int(expected_text_tokens(values, TOKENIZERS[0]).max(initial=1))
    if properties := schema.get("properties"):
        keys = int(expected_text_tokens([f'"{name}":,' for name in properties], TOKENIZERS[0]).sum())
        return 2 + keys + sum(_reply_tokens(value, root, depth - 1) for value in properties.values())
    match schema.get("type"):
        case "array":
            return 2 + _ITEMS * (1 + _reply_tokens(schema.get("items"), root, depth - 1))
        case "integer" | "number" | "boolean" | "null":
            return 3
        case _:
            return _TOKENS_OF_TEXT_FIELD
