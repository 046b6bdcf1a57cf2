r"""Read result lines of Gemini batches, of Vertex AI and of the Gemini API, as one Result each. Pure; never raises.

    Vertex AI    {"status":"","custom_id":"…","request":{…},"response":{…}}    failed: `status` has the reason
    Gemini API   {"key":"…","response":{…}} or {"key":"…","error":{"code":3,"message":"…"}}
    … inline     {"metadata":{"key":"…"},"response":{…}}

Thinking is billed as output, cached input is part of the prompt's tokens, and a total may be absent. A reply cut at the
output limit has the finish_reason "length"; any other one is the vendor's word.

A line in the vendor's usual form is read in one go; any other is read step by step.

Formats: https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/batch-prediction-from-cloud-storage,
https://ai.google.dev/gemini-api/docs/batch-api
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Raw, Struct, field

from dagster_llm_batch.core.logprobs import read_tokens
from dagster_llm_batch.providers.jsonlines import MAX_REASON_CHARS, decode_line, decode_usual, lacks_document
from dagster_llm_batch.providers.usage import GEMINI, extra_of
from dagster_llm_batch.types import Extra, Outcome, Result, ResultColumns, Usage

__all__ = ["RETRYABLE_RPC_CODES", "Line", "error_result", "read_google_line", "read_google_lines", "read_parts"]

RETRYABLE_RPC_CODES = frozenset({4, 8, 10, 13, 14})
"""google.rpc.Code: deadline, exhausted, aborted, internal, unavailable."""

_CANCELLED = 1
_RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_HTTP_STATUS = 100
_CUT_SHORT = "MAX_TOKENS"
_WITHHELD = frozenset(
    {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT"}
)
_STATUS_LINE = re.compile(r"\s*([A-Za-z][\w' -]*?)\s*:\s*(.*)", re.DOTALL)
_PHRASES = {status.phrase.lower(): status.value for status in HTTPStatus}
_NULL = Raw(b"null")
# A separate name, since it is looked up for each row.
_SUCCEEDED = Outcome.SUCCEEDED


class Line(Struct):
    """A result line of either API; the echoed request is not looked at."""

    custom_id: Any = None
    key: Any = None
    metadata: Any = None
    status: Any = None
    error: Any = None
    response: Raw = _NULL


class _Part(Struct):
    text: str | None = None
    thought: bool | None = None


class _Content(Struct):
    parts: list[_Part] | None = None


class _Candidate(Struct):
    content: _Content | None = None
    finish_reason: str | None = field(name="finishReason", default=None)
    finish_message: str | None = field(name="finishMessage", default=None)
    grounding: Any = field(name="groundingMetadata", default=None)
    logprobs: Any = field(name="logprobsResult", default=None)


class _PlainCandidate(_Candidate):
    """A candidate without searches that has only its text."""

    grounding: None = field(name="groundingMetadata", default=None)
    logprobs: None = field(name="logprobsResult", default=None)


class _Feedback(Struct):
    block_reason: str | None = field(name="blockReason", default=None)


class _Usage(Struct, rename="camel"):
    prompt_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    cached_content_token_count: int | None = None


class _TextTokens(Struct, rename="camel", forbid_unknown_fields=True):
    modality: Literal["TEXT", "MODALITY_UNSPECIFIED"]
    token_count: int | None = None


class _PlainUsage(_Usage, rename="camel", forbid_unknown_fields=True):
    """Usage with nothing but plain tokens in it. Any other is read by `providers.usage`."""

    total_token_count: int | None = None
    prompt_tokens_details: list[_TextTokens] | None = None
    tool_use_prompt_tokens_details: list[_TextTokens] | None = None
    cache_tokens_details: list[_TextTokens] | None = None
    candidates_tokens_details: list[_TextTokens] | None = None
    traffic_type: Literal["ON_DEMAND", "TRAFFIC_TYPE_UNSPECIFIED"] | None = None
    service_tier: Literal["standard", "STANDARD", "unspecified"] | None = None


class _Reply(Struct):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = field(name="promptFeedback", default=None)
    model_version: str | None = field(name="modelVersion", default=None)
    usage: Raw = field(name="usageMetadata", default=_NULL)
    error: Any = None


class _Replied(Struct):
    candidates: list[_PlainCandidate]
    model_version: str | None = field(name="modelVersion", default=None)
    usage: _PlainUsage | None = field(name="usageMetadata", default=None)
    error: None = None


class _Answered(Struct):
    """The line of a reply as the vendor writes it, to a file."""

    response: _Replied
    custom_id: str | None = None
    key: str | None = None
    metadata: None = None
    status: Literal[""] | None = None
    error: None = None


class _UsualPart(Struct, gc=False):
    text: Annotated[str, msgspec.Meta(min_length=1)]
    thought: None = None


class _UsualContent(Struct, gc=False):
    parts: tuple[_UsualPart]


class _UsualCandidate(Struct, gc=False):
    content: _UsualContent
    finish_reason: Literal["STOP"] | None = field(name="finishReason", default=None)
    grounding: None = field(name="groundingMetadata", default=None)
    logprobs: None = field(name="logprobsResult", default=None)


class _UsualUsage(_PlainUsage, rename="camel", kw_only=True, gc=False, forbid_unknown_fields=True):
    prompt_token_count: int
    candidates_token_count: int


class _UsualReply(Struct, gc=False):
    """A reply of one text and plain tokens, which is the form of nearly all lines."""

    candidates: tuple[_UsualCandidate]
    usage: _UsualUsage = field(name="usageMetadata")
    model_version: str | None = field(name="modelVersion", default=None)
    error: None = None


class _UsualLine(Struct, gc=False):
    response: _UsualReply
    custom_id: str | None = None
    key: str | None = None
    metadata: None = None
    status: Literal[""] | None = None
    error: None = None


_USUAL = msgspec.json.Decoder(_UsualLine)
_ANSWERED = msgspec.json.Decoder(_Answered)
_LINE = msgspec.json.Decoder(Line)
_REPLY = msgspec.json.Decoder(_Reply)
# counts are sometimes strings
_USAGE = msgspec.json.Decoder(_Usage, strict=False)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


def read_google_line(line: bytes) -> Result:
    """Read one result line with a reply of Gemini."""
    try:
        answered = _ANSWERED.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_bent_line(line)
    reply = answered.response
    text, finish = _first_candidate(reply.candidates)
    if not text or finish in _WITHHELD:
        return _read_bent_line(line)
    custom_id = answered.key if answered.custom_id is None else answered.custom_id
    usage = None if reply.usage is None else _tokens(reply.usage)
    finish = "length" if finish == _CUT_SHORT else finish
    return Result(custom_id, _SUCCEEDED, text, finish_reason=finish, model=reply.model_version, usage=usage)


def read_google_lines(lines: Sequence[bytes]) -> ResultColumns:
    """Read result lines, each as `read_google_line` does."""
    read, others = decode_usual(lines, _USUAL)
    replies = [line.response for line in read]
    candidates = [reply.candidates[0] for reply in replies]
    columns = ResultColumns.of_texts(
        [line.key if line.custom_id is None else line.custom_id for line in read],
        [candidate.content.parts[0].text for candidate in candidates],
        [candidate.finish_reason for candidate in candidates],
        [reply.model_version for reply in replies],
        [_counts(reply.usage) for reply in replies],
    )
    return columns.insert(others, [read_google_line(lines[at]) for at in others])


def _read_bent_line(line: bytes) -> Result:
    read, result = read_parts(line)
    return result if read is None else _reply(bytes(read.response))._replace(custom_id=result.custom_id)


def read_parts(line: bytes) -> tuple[Line | None, Result]:
    """Return the line if it holds a reply, else None; and the Result with the facts so far."""
    read, reason = decode_line(line, _LINE)
    if read is None:
        return None, Result(None, Outcome.ERRORED, reason=reason)
    inner = read.metadata.get("key") if isinstance(read.metadata, Mapping) else None
    custom_id = next((name for name in (read.custom_id, read.key, inner) if isinstance(name, str)), None)
    failed = _failure(read)
    if failed is not None:
        return None, failed._replace(custom_id=custom_id)
    return read, Result(custom_id, Outcome.ERRORED)


def _failure(line: Line) -> Result | None:
    if line.error not in (None, {}, ""):
        return error_result(line.error)
    if isinstance(line.status, str) and line.status.strip():
        return _status_error(line.status)
    if isinstance(line.status, Mapping) and line.status.get("code"):
        return error_result(line.status)
    if bytes(line.response).strip() in (b"null", b"", b"{}"):
        return Result(None, Outcome.ERRORED, reason="the line has neither a reply nor an error")
    return None


def _status_error(status: str) -> Result:
    """Vertex AI's status text: `Bad Request: {"error": {…}}`, or any other words."""
    match = _STATUS_LINE.fullmatch(status)
    try:
        value = json.loads(match[2] if match else status)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, Mapping):
        return error_result(value.get("error", value))
    phrase = (match[1] if match else status).strip().lower()
    return error_result({"code": _PHRASES.get(phrase), "message": status.strip()})


def error_result(error: Any) -> Result:
    """Return an error object (or text) as a Result. Codes are HTTP statuses, or below 100 codes of google.rpc."""
    if not isinstance(error, Mapping):
        return Result(None, Outcome.ERRORED, reason=str(error)[:MAX_REASON_CHARS])
    code = error.get("code")
    code = int(code) if isinstance(code, str) and code.isdecimal() else code
    words = [str(word) for word in (code, error.get("status")) if word not in (None, "")]
    reason = ": ".join(part for part in (" ".join(words), str(error.get("message") or "")) if part)
    reason = (reason or "an error without a message")[:MAX_REASON_CHARS]
    if code == _CANCELLED:
        return Result(None, Outcome.CANCELED, reason=reason, retryable=True)
    retryable = False
    if isinstance(code, int):
        retryable = code in (RETRYABLE_RPC_CODES if code < _FIRST_HTTP_STATUS else _RETRYABLE_STATUSES)
    # A document that has expired is uploaded again.
    retryable = retryable or lacks_document(error.get("message"))
    return Result(None, Outcome.ERRORED, reason=reason, retryable=retryable)


def _reply(raw: bytes) -> Result:
    try:
        reply = _REPLY.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        text = raw.decode("utf-8", "replace")
        return Result(None, Outcome.INVALID, text, reason=f"unreadable reply: {error}"[:MAX_REASON_CHARS])
    if reply.error not in (None, {}):
        return error_result(reply.error)
    return _content(reply)._replace(model=reply.model_version, usage=_usage(bytes(reply.usage), reply))


def _content(reply: _Reply) -> Result:
    blocked = reply.prompt_feedback.block_reason if reply.prompt_feedback else None
    if not reply.candidates:
        if blocked:
            return Result(None, Outcome.INVALID, reason=f"the prompt was blocked: {blocked}", finish_reason=blocked)
        return Result(None, Outcome.INVALID, reason="the reply holds no candidate", retryable=True)
    text, word = _first_candidate(reply.candidates)
    finish = "length" if word == _CUT_SHORT else word
    if word in _WITHHELD:
        why = reply.candidates[0].finish_message or "the provider withheld the reply"
        reason = f"{word}: {why}"
        return Result(None, Outcome.INVALID, text, reason=reason[:MAX_REASON_CHARS], finish_reason=finish)
    if text is None and word != _CUT_SHORT:
        reason = f"the reply holds no text (finishReason: {word})"
        return Result(None, Outcome.INVALID, None, reason=reason, retryable=True, finish_reason=finish)
    found = reply.candidates[0].logprobs
    chosen = found.get("chosenCandidates") if isinstance(found, Mapping) else None
    tokens = read_tokens(chosen, logprob="logProbability")
    return Result(None, Outcome.SUCCEEDED, text or "", finish_reason=finish, logprobs=tokens)


def _first_candidate(candidates: Sequence[_Candidate]) -> tuple[str | None, str | None]:
    """Return the text of the first candidate, without its thoughts, and why it ends."""
    if not candidates:
        return None, None
    first = candidates[0]
    parts = (first.content.parts if first.content else None) or []
    texts = [part.text for part in parts if part.text is not None and not part.thought]
    return "".join(texts) if texts else None, first.finish_reason


def _usage(raw: bytes, reply: _Reply) -> Usage | None:
    try:
        usage, value = _tokens(_USAGE.decode(raw)), _OBJECT.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return None if usage is None else usage._replace(extra=_extra(value, reply))


# Not a set: a server may send a list in the place of a word, and a list cannot be looked up in a set.
_USUAL_TRAFFIC = (None, "ON_DEMAND", "TRAFFIC_TYPE_UNSPECIFIED")
_USUAL_TIERS = frozenset({None, "standard", "unspecified", "service_tier_unspecified"})


def _extra(usage: Mapping[str, Any], reply: _Reply) -> Extra | None:
    """Return the billed units in addition to plain tokens: media, a tier, searches."""
    tier = None
    traffic, named = usage.get("trafficType"), usage.get("serviceTier")
    if traffic not in _USUAL_TRAFFIC:
        # Vertex AI's word; the price book has the Gemini API's for the same tiers.
        tier = ("service_tier", str(traffic).removeprefix("ON_DEMAND_").lower())
    elif named is not None and (word := str(named).lower()) not in _USUAL_TIERS:
        tier = ("service_tier", word)
    searches, unpriced = _searches(reply)
    units = {"web_searches": searches} if searches else {}
    if usage.get("cachedContentTokenCount") and usage.get("cacheTokensDetails"):
        # A kind of cached tokens that is missing there is zero.
        units |= dict.fromkeys(("cache_audio_read_tokens", "cache_image_read_tokens"), 0)
    extra = extra_of(usage, GEMINI, others=Extra(tier=tier, units=tuple(units.items()), unpriced=unpriced))
    if extra is not None and not any(count for _, count in extra.units):
        extra = extra._replace(units=())
    return None if extra == Extra() else extra


def _searches(reply: _Reply) -> tuple[int, str | None]:
    """Return the number of billed searches, and the kind of grounding whose price the price book lacks.

    Up to Gemini 2.5 a prompt that was grounded counts once, since Gemini 3 each query (GOOGLE_SEARCHES of
    `core/price_sources.py`). The account's allowance of free searches shows in no reply, so all are priced.
    """
    queries, unpriced = 0, None
    for candidate in reply.candidates or ():
        grounding = candidate.grounding if isinstance(candidate.grounding, Mapping) else {}
        asked = grounding.get("webSearchQueries")
        queries += sum(1 for query in asked if query) if isinstance(asked, list) else 0
        chunks = grounding.get("groundingChunks")
        kinds = {str(kind) for chunk in chunks if isinstance(chunk, Mapping) for kind in chunk} if chunks else set()
        dear = sorted({*kinds, *grounding} & _DEAR_GROUNDS)
        unpriced = unpriced or (f"grounding by '{dear[0]}'" if dear else None)
    is_once = (reply.model_version or "").startswith(("gemini-1", "gemini-2"))
    return min(queries, 1) if is_once else queries, unpriced


# Google Maps, Vertex AI Search and images have separate prices: GOOGLE_PRICES.
_DEAR_GROUNDS = frozenset(
    {"maps", "googleMapsWidgetContextToken", "retrievedContext", "retrievalQueries", "image", "imageSearchQueries"}
)


def _tokens(read: _Usage) -> Usage | None:
    is_told = read.prompt_token_count is not None or read.candidates_token_count is not None
    return Usage(*_counts(read)) if is_told else None


def _counts(read: _Usage) -> tuple[int, int, int, int, int, int]:
    """Return the counts of a usage in the order of TOKENS."""
    # Thinking is billed as output, and is no part of the candidates' tokens. The vendor's total is absent at times.
    thoughts = read.thoughts_token_count or 0
    given = (read.prompt_token_count or 0) + (read.tool_use_prompt_token_count or 0)
    made = (read.candidates_token_count or 0) + thoughts
    return given, made, read.cached_content_token_count or 0, 0, 0, thoughts
