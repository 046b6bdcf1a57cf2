"""How many tokens a request has, before it is sent: how many are expected, and more than which there cannot be.

**Expected** input goes by rates: a byte that follows another costs so many hundredths of a token, by what kind of
character both are, and a character beyond ASCII costs what its script does. The rates are fitted to real tokenizers,
which spend a token on a word of English, on a third of a UUID's group and on each byte of a script that they hardly
know. Of a long text only a stretch is looked at, for a plan counts millions of them.

**The bound** of input holds for every text: a tokenizer that knows each byte never makes more tokens of a text than it
has bytes. That is documented for OpenAI (tiktoken), Llama, Mistral, Qwen and DeepSeek, and for Gemini by the report of
Gemma, which has its tokenizer. Anthropic and Amazon document none. Claude's published one (2023) knows each byte, too,
but normalizes a text before (NFKC), which can make it longer: there the bytes of both forms are counted. To the text
comes what frames it: roles, the prompt that a vendor adds for tools or a schema, and images by the vendors' formulas
(`media_tokens`). No request is answered, nor billed, whose input is more than the model takes in all.

The bound of output is the caller's own maximum, under whatever name the vendor's body has it; thinking is inside of it
at OpenAI, Anthropic and Google. Else it is the model's maximum, of the dated table below, or all that the model takes.

None: nobody knows, as of a tool that runs at the vendor, which reads pages of any length into the request.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, canonical_json, packed
from dagster_llm_batch.types import Image, Request, RequestSpec, ResponseKind

__all__ = [
    "OPENAI_BOOKS",
    "InputCounter",
    "InputCounts",
    "InputTokens",
    "OutputTokens",
    "model_max_output",
    "output_tokens",
]


class InputTokens(NamedTuple):
    """Input tokens of something. `bound`: there cannot be more; None where nobody knows."""

    expected: int
    bound: int | None


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

    The bound is None where nobody knows.
    """

    expected: int
    p95: int
    bound: int | None


NO_OUTPUT = OutputTokens(0, 0, 0)


# The tokenizers that the rates below are fitted to, in the order of their columns.
_TOKENIZERS = ("o200k", "claude", "gemma", "llama")

# Kinds of ASCII characters: lower case, upper case, digit, space, other white space and control, punctuation. The
# seventh is all that is not ASCII.
_END_OF_ASCII = 128
_LOWER, _UPPER, _DIGIT, _SPACE, _BREAK, _MARK, _BEYOND = range(7)
_KINDS = 6

# Tokens of an ASCII character, by the kind of the one before it (rows) and its own (columns).
#
# Fitted on 2026-11-27 by non-negative least squares to 1,045 pieces of 200 to 400 characters, and checked on 349
# others: the Universal Declaration of Human Rights in 40 languages, Python, CSV with UUIDs and times, JSON, URLs,
# base64, hex, digits, emoji. The tokenizers: OpenAI's o200k_base; Anthropic's of 2023, the only one that it has
# published; Gemma 3's, for Gemini; Llama 3.1's, for all others. tests/core/token_counts.json has texts with counts.
_PAIRS: dict[str, tuple[tuple[float, ...], ...]] = {
    "o200k": (
        (0.07, 1.41, 0.19, 0.00, 0.19, 0.00),
        (0.51, 0.23, 0.68, 0.00, 0.00, 0.98),
        (1.65, 1.83, 0.33, 0.00, 1.26, 0.00),
        (0.72, 0.62, 1.62, 0.03, 0.31, 0.38),
        (0.20, 0.00, 0.00, 1.53, 0.00, 2.92),
        (1.23, 0.00, 1.69, 1.13, 0.18, 0.20),
        (0.00, 1.17, 0.03, 0.80, 0.00, 0.58),
    ),
    "claude": (
        (0.07, 1.31, 0.07, 0.00, 0.00, 0.37),
        (0.46, 0.22, 0.54, 0.00, 0.03, 1.87),
        (1.68, 2.46, 0.42, 0.00, 2.22, 0.07),
        (0.66, 1.01, 0.52, 0.03, 0.00, 0.00),
        (0.82, 0.00, 0.00, 0.50, 0.32, 2.67),
        (1.46, 0.00, 1.31, 1.16, 0.84, 0.07),
        (0.00, 0.98, 0.00, 1.30, 0.00, 0.00),
    ),
    "gemma": (
        (0.07, 1.24, 0.42, 0.00, 0.45, 0.30),
        (0.49, 0.19, 0.75, 0.00, 0.50, 1.42),
        (1.66, 1.89, 0.99, 0.00, 1.64, 0.22),
        (0.71, 0.62, 1.49, 0.03, 0.00, 0.29),
        (0.82, 0.00, 0.00, 1.47, 0.00, 2.07),
        (1.47, 0.00, 1.70, 0.91, 1.03, 0.23),
        (0.00, 0.81, 0.00, 0.54, 0.00, 0.84),
    ),
    "llama": (
        (0.08, 1.44, 0.00, 0.00, 0.09, 0.00),
        (0.59, 0.17, 0.24, 0.00, 0.00, 1.28),
        (1.83, 2.52, 0.33, 0.68, 1.24, 0.00),
        (0.64, 0.88, 0.94, 0.04, 0.09, 0.33),
        (0.14, 0.00, 0.00, 1.29, 0.00, 2.52),
        (1.24, 0.00, 1.58, 1.37, 0.00, 0.17),
        (0.00, 1.47, 0.00, 0.86, 0.00, 1.08),
    ),
}

# Tokens of a character beyond ASCII, by its script: the first and last code point, and the rates of the tokenizers.
# Both are multiples of 16.
_SCRIPTS = (
    (0x0080, 0x0300, (1.56, 3.43, 1.49, 1.91)),  # Latin with accents
    (0x0300, 0x0370, (0.84, 1.50, 0.22, 0.42)),  # accents by themselves
    (0x0370, 0x0400, (0.26, 1.12, 0.31, 0.26)),  # Greek
    (0x0400, 0x0530, (0.18, 0.49, 0.21, 0.19)),  # Cyrillic
    (0x0530, 0x0590, (0.18, 1.98, 0.48, 1.71)),  # Armenian
    (0x0590, 0x0600, (0.28, 0.81, 0.42, 0.98)),  # Hebrew
    (0x0600, 0x0780, (0.18, 0.86, 0.25, 0.20)),  # Arabic
    (0x0900, 0x0980, (0.17, 1.09, 0.18, 0.44)),  # Devanagari
    (0x0980, 0x0A00, (0.26, 1.88, 0.17, 1.29)),  # Bengali
    (0x0A00, 0x0A80, (0.42, 2.98, 0.51, 1.77)),  # Gurmukhi
    (0x0A80, 0x0B00, (0.25, 2.96, 0.31, 1.84)),  # Gujarati
    (0x0B80, 0x0C00, (0.28, 1.99, 0.20, 1.45)),  # Tamil
    (0x0C00, 0x0C80, (0.41, 2.25, 0.39, 1.89)),  # Telugu
    (0x0C80, 0x0D00, (0.33, 2.22, 0.35, 1.89)),  # Kannada
    (0x0D00, 0x0D80, (0.29, 2.33, 0.28, 1.74)),  # Malayalam
    (0x0D80, 0x0E00, (0.50, 1.68, 0.41, 2.01)),  # Sinhala
    (0x0E00, 0x0E80, (0.40, 1.78, 0.32, 0.43)),  # Thai
    (0x0E80, 0x0F00, (1.87, 3.05, 0.56, 2.00)),  # Lao
    (0x0F00, 0x1000, (1.51, 2.97, 0.69, 2.07)),  # Tibetan
    (0x1000, 0x10A0, (0.50, 0.90, 0.39, 2.04)),  # Burmese
    (0x10A0, 0x1100, (0.20, 1.21, 0.34, 2.01)),  # Georgian
    (0x1200, 0x13A0, (2.00, 2.96, 0.82, 2.95)),  # Ethiopic
    (0x1780, 0x1800, (0.60, 2.98, 0.45, 1.65)),  # Khmer
    (0x1E00, 0x2000, (0.50, 0.70, 0.49, 0.50)),  # Vietnamese
    (0x2000, 0x2070, (0.60, 0.80, 0.60, 0.60)),  # dashes and quotation marks
    (0x3000, 0x3100, (0.90, 1.01, 0.46, 0.64)),  # kana
    (0x3400, 0xA000, (0.70, 1.05, 0.62, 0.75)),  # Han: less than of the Declaration, more than of everyday messages
    (0xAC00, 0xD7B0, (0.46, 1.09, 0.50, 0.42)),  # Hangul
    (0xFF00, 0xFFF0, (0.80, 0.90, 0.80, 0.80)),  # full width
    (0x1F000, 0x1FB00, (2.19, 2.57, 1.65, 2.81)),  # emoji
)

# Scripts that were not measured are ones that tokenizers know least: nearly a token a byte.
_UNMEASURED = 2.5

# Of a row's text, so many characters are looked at in one stretch, and one in so many where it is long. The rest is
# taken to be like them: over many rows that evens out. Where they begin is up to the request_id, so that a request has
# one count, wherever it is counted.
_LOOKED_AT, _ONE_IN = 32, 32

# What frames a message, and a request: its role, and marks where it begins and ends. OpenAI: 3 a message and 3 for the
# reply (https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken_toolkit). The bounds have room for
# vendors that document none.
_MESSAGE, _MOST_MESSAGE = 4, 16
_REQUEST, _MOST_REQUEST = 3, 64

_SYSTEM = InputTokens(_MESSAGE, _MOST_MESSAGE)

# The prompt that a vendor adds for tools or a schema. Anthropic's for tools has up to 530 tokens
# (https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview#pricing); others document none.
_MOST_ADDED = 1_024


OPENAI_BOOKS = frozenset({"openai", "azure"})
"""The price book's ids of those who run OpenAI's models, and count as OpenAI does."""


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


def _kinds() -> bytes:
    kinds = bytearray([_BREAK] * 33 + [_MARK] * 95 + [_BEYOND] * 128)
    for first, last, kind in ((b"a", b"z", _LOWER), (b"A", b"Z", _UPPER), (b"0", b"9", _DIGIT), (b" ", b" ", _SPACE)):
        kinds[first[0] : last[0] + 1] = bytes([kind]) * (last[0] - first[0] + 1)
    return bytes(kinds)


_KIND_OF = _kinds()
_Counts = npt.NDArray[np.int64]


_WIDTH = _KINDS + len(_SCRIPTS) + 1


class _Rates:
    """The rates of one tokenizer, in hundredths, as a table to look many characters up in."""

    def __init__(self, tokenizer: str) -> None:
        pairs, column = _PAIRS[tokenizer], _TOKENIZERS.index(tokenizer)
        scripts = [*(rates[column] for *_, rates in _SCRIPTS), _UNMEASURED]
        self._table = np.rint(np.array([[*row, *scripts] for row in pairs]) * 100).astype(np.float32).ravel()

    def of(self, characters: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return what each character costs, along the last axis: the first only says what the second follows.

        ASCII characters are bytes, others code points.
        """
        kinds = _kinds_of(characters)
        pairs = np.minimum(kinds[..., :-1], _BEYOND).astype(np.uint16)
        pairs *= _WIDTH
        pairs += kinds[..., 1:]
        costs: npt.NDArray[np.float32] = self._table.take(pairs)
        return costs


def _kinds_of(characters: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if characters.dtype == np.uint8:
        kinds = np.frombuffer(characters.tobytes().translate(_KIND_OF), np.uint8)
        return kinds.reshape(characters.shape)
    is_ascii = characters < _END_OF_ASCII
    return np.where(is_ascii, _kind_table()[characters & 127], _script_table()[characters >> 4])


def _characters_of(text: str) -> npt.NDArray[Any]:
    """Return the characters of a text: bytes of ASCII, else code points."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@lru_cache(maxsize=1)
def _kind_table() -> npt.NDArray[np.uint8]:
    return np.frombuffer(_KIND_OF, np.uint8)


@lru_cache(maxsize=1)
def _script_table() -> npt.NDArray[np.uint8]:
    """Return the column of each script in a table of rates, by code point divided by 16."""
    columns = np.full(0x110000 >> 4, _KINDS + len(_SCRIPTS), np.uint8)
    for number, (first, end, _) in enumerate(_SCRIPTS):
        columns[first >> 4 : end >> 4] = _KINDS + number
    return columns


@lru_cache(maxsize=len(_TOKENIZERS))
def _rates(tokenizer: str) -> _Rates:
    return _Rates(tokenizer)


def expected_text_tokens(texts: Sequence[str], tokenizer: str, seeds: _Counts | None = None) -> _Counts:
    """Return about how many tokens each text has.

    `seeds`, random numbers: of each text only a stretch is looked at, and they say where it begins.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if not texts:
        return lengths
    if seeds is None:
        return _rounded_up(_sums(texts, tokenizer), lengths, lengths)
    looked_at = np.minimum(lengths, np.maximum(lengths // _ONE_IN, _LOOKED_AT))
    starts = seeds % np.maximum(lengths - looked_at, 1)
    is_usual = (lengths > _LOOKED_AT) & (looked_at == _LOOKED_AT)
    if is_usual.all():
        return _rounded_up(_sums_of_stretches(texts, lengths, starts, tokenizer), lengths, looked_at)
    sums = np.empty(len(texts), np.int64)
    usual, others = np.flatnonzero(is_usual), np.flatnonzero(~is_usual)
    if len(usual):
        chosen = [texts[at] for at in usual.tolist()]
        sums[usual] = _sums_of_stretches(chosen, lengths[usual], starts[usual], tokenizer)
    places = zip(others.tolist(), starts[others].tolist(), looked_at[others].tolist(), strict=True)
    # A stretch that is not all of its text begins a character earlier, which costs nothing; see `_Rates.of`.
    cut = [(texts[at][start : start + 1 + count], count < len(texts[at])) for at, start, count in places]
    sums[others] = _sums([text for text, _ in cut], tokenizer, np.array([is_cut for _, is_cut in cut], np.bool_))
    return _rounded_up(sums, lengths, looked_at)


def _rounded_up(hundredths: _Counts, lengths: _Counts, looked_at: _Counts) -> _Counts:
    """Return the tokens of texts of which so many characters were looked at."""
    counts: _Counts = -(-hundredths * lengths // (np.maximum(looked_at, 1) * 100))
    return counts


def _sums(texts: Sequence[str], tokenizer: str, are_cut: npt.NDArray[np.bool_] | None = None) -> _Counts:
    """Return what all characters of each text cost, but for the first of those that are cut."""
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
    """Return what so many characters of each text cost as are looked at, after the one at its start."""
    width = _LOOKED_AT + 1
    if all(map(str.isascii, texts)):
        whole = "".join(texts).encode("ascii")
        begins = np.cumsum(lengths)
        begins += starts - lengths
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


def most_text_tokens(texts: Sequence[str], tokenizer: str) -> _Counts:
    """Return how many tokens each text has at most."""
    if all(map(str.isascii, texts)):
        return np.fromiter(map(len, texts), np.int64, len(texts))
    sizes = [len(text) if text.isascii() else _most_bytes(text, tokenizer) for text in texts]
    return np.array(sizes, np.int64)


def _most_bytes(text: str, tokenizer: str) -> int:
    size = len(text.encode("utf-8", "surrogatepass"))
    if tokenizer != "claude" or unicodedata.is_normalized("NFKC", text):
        return size
    return max(size, len(unicodedata.normalize("NFKC", text).encode("utf-8", "surrogatepass")))


# Parameters by which the vendor puts stored text before the request. None of them makes it longer than the model takes.
_STORED = ("cached_content", "cachedContent", "previous_response_id", "conversation", "prompt")

# Tools that the caller runs. All others run at the vendor, which asks the model again with what they found.
_OWN_TOOLS = frozenset({"function", "custom"})
_OWN_DECLARATIONS = frozenset(
    {"functionDeclarations", "function_declarations", "toolSpec", "cachePoint", "cache_control"}
)


class InputCounter:
    """Count the input tokens of requests that share a spec.

    Args:
        book: The price book's id of the model's vendor; None where nothing is billed.
        spec: What the requests share.
        context: How many tokens the model takes in all; None where nobody knows.
    """

    def __init__(self, book: str | None, spec: RequestSpec, context: int | None) -> None:
        self._book, self._model, self._params, self._context = book, spec.model, spec.params, context
        self._tokenizer = tokenizer_of(book, spec.model)
        self._frame = InputTokens(0, _MOST_MESSAGE) if _embeds(spec) else self._frame_of(spec)
        # Of the system part before: mostly, all requests have the same.
        self._last_system: tuple[str | None, tuple[_Counts, _Counts]] = (None, self._texts([""], _SYSTEM))
        self._is_open = "mcp_servers" in spec.params or any(map(_runs_at_vendor, _tools(spec.params)))
        self._is_stored = any(spec.params.get(name) is not None for name in _STORED)

    def _frame_of(self, spec: RequestSpec) -> InputTokens:
        """Return the tokens of what every request has besides its own texts and images."""
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
        ids, systems, users, images = zip(*requests, strict=True)
        seeds = np.frombuffer(packed(ids), ">u4")[:: REQUEST_ID_BYTES // 4].astype(np.int64)
        expected, bounds = self._texts(users, self._frame, seeds)
        if any(systems):
            is_same = len(set(systems)) == 1
            more, most = (
                self._system(systems[0]) if is_same else self._texts([s or "" for s in systems], _SYSTEM, seeds)
            )
            expected, bounds = expected + more, bounds + most
        if any(images):
            return self._with_images(expected, bounds, images)
        if self._is_open or self._is_stored:
            return InputCounts(expected.tolist(), [self._limited(None)] * len(requests))
        limited = bounds if self._context is None else np.minimum(bounds, self._context)
        return InputCounts(expected.tolist(), limited.tolist())

    def _system(self, text: str) -> tuple[_Counts, _Counts]:
        known, counts = self._last_system
        if known != text:
            counts = self._texts([text], _SYSTEM)
            self._last_system = (text, counts)
        return counts

    def _with_images(self, expected: _Counts, bounds: _Counts, images: Sequence[Sequence[Image]]) -> InputCounts:
        from dagster_llm_batch.core.media_tokens import media_tokens  # noqa: PLC0415 - few prompts have images

        own, limits = expected.tolist(), []
        for place, (most, of_row) in enumerate(zip(bounds.tolist(), images, strict=True)):
            media = [media_tokens(self._book, self._model, self._params, image) for image in of_row]
            own[place] += sum(count.expected for count in media)
            known = [count.bound for count in media if count.bound is not None]
            limits.append(self._limited(most + sum(known) if len(known) == len(media) else None))
        return InputCounts(own, limits)

    def _texts(self, texts: Sequence[str], frame: InputTokens, seeds: _Counts | None = None) -> tuple[_Counts, _Counts]:
        """Return how many tokens are expected of each text and its frame, and how many there are at most."""
        most = most_text_tokens(texts, self._tokenizer)
        expected = np.minimum(expected_text_tokens(texts, self._tokenizer, seeds), most)
        return expected + frame.expected, most + (frame.bound or 0)

    def _limited(self, bound: int | None) -> int | None:
        """Return the bound of a request whose own texts and images have this one; None: that is not known."""
        if self._is_open:
            return None
        if self._is_stored or bound is None:
            return self._context
        return bound if self._context is None else min(bound, self._context)


def _embeds(spec: RequestSpec) -> bool:
    return spec.response.kind is ResponseKind.EMBEDDING


# How the vendors' bodies mark what is to be kept for the requests that follow.
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


# What a reply may have at most where the caller says nothing, by the model's name. The first that matches holds. Cut on
# 2026-11-27 from litellm 1.110.2's table (MIT, (c) Berri AI), whose sources are the vendors' pages; where platforms
# differ, the largest.
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
    """Return the most tokens of one reply of the model, or None where the table does not have it."""
    name = model.lower()
    return next((tokens for pattern, tokens in _MOST_OUTPUT if pattern.search(name)), None)


# The caller's maximum, as the vendors' bodies name it, and the objects within which some of them have it.
_MAXIMA = (
    *("max_completion_tokens", "max_output_tokens", "maxOutputTokens", "max_tokens", "maxTokens", "max_new_tokens"),
    *("max_gen_len", "maxTokenCount", "max_tokens_to_sample"),
)
_AROUND = (
    *("inferenceConfig", "inference_config", "textGenerationConfig", "generationConfig", "generation_config"),
    "additionalModelRequestFields",
)

# Models that think before they reply unless they are told otherwise.
_THINKS = re.compile(r"^(ft:)?o[134](-|$)|gpt-[56](?!.*-chat)|gpt-oss|gemini-(2\.5(?!-flash-lite)|[3-9])|deepseek.*r1")

# Where neither the caller nor the ledger says how long replies are. These are rough, and short-lived: what is expected
# is learned from replies once there are some.
_EXPECTED_TEXT = 1_024
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_EXPECTED_THINKING = dict(zip(_EFFORTS, (0, 128, 512, 1_024, 4_096, 8_192, 8_192), strict=True))
_TOKENS_OF_TEXT_FIELD, _ITEMS, _DEEPEST = 16, 3, 8
_TIMES_FOR_P95 = 4


def output_tokens(spec: RequestSpec, context: int | None, said: int | None = None) -> OutputTokens:
    """Return the output tokens of each request with this spec.

    Args:
        spec: What the requests share.
        context: How many tokens the model takes in all; None where nobody knows.
        said: What the user expects of a reply.

    The bound is the caller's maximum, else the model's, else `context`. Where the user says nothing, a reply is
    expected to be as long as the caller's maximum; without one, as its schema says, and the model's thinking beside it.
    """
    if _embeds(spec):
        return NO_OUTPUT
    own = max(_given_maxima(spec.params), default=None)
    limit = own if own is not None else model_max_output(spec.model)
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


def _given_maxima(params: Mapping[str, Any]) -> Iterator[int]:
    for name in _MAXIMA:
        value = params.get(name)
        if isinstance(value, (int, float, str)) and str(value).strip().isdigit():
            yield int(value)
    for name in _AROUND:
        if isinstance(inner := params.get(name), Mapping):
            yield from _given_maxima(inner)


def _thinking_tokens(spec: RequestSpec) -> int:
    """Return about how many tokens the model thinks."""
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
    """Return about how many tokens a value of a JSON Schema has."""
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
        return int(expected_text_tokens(values, _TOKENIZERS[0]).max(initial=1))
    if properties := schema.get("properties"):
        keys = int(expected_text_tokens([f'"{name}":,' for name in properties], _TOKENIZERS[0]).sum())
        return 2 + keys + sum(_reply_tokens(value, root, depth - 1) for value in properties.values())
    match schema.get("type"):
        case "array":
            return 2 + _ITEMS * (1 + _reply_tokens(schema.get("items"), root, depth - 1))
        case "integer" | "number" | "boolean" | "null":
            return 3
        case _:
            return _TOKENS_OF_TEXT_FIELD
