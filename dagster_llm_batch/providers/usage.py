"""The billed units of a reply's usage, in addition to plain tokens, as `types.Extra`; one table per vendor's shape.

A table maps each count that a vendor documents: to None if only tokens are billed, else to the price book's name of its
unit. A count that all tables lack may have a price, so it makes the cost unknown, and is named. The tables' source,
with its date, is USAGE_SHAPES of `core/price_sources.py`; other names in capitals here are from there, too.

Providers read a reply with only plain tokens without these tables. For Claude, which has one shape of usage at several
vendors, that shape is here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from msgspec import Struct

from dagster_llm_batch.types import Extra

__all__ = [
    "CHAT",
    "CLAUDE",
    "CONVERSE",
    "GEMINI",
    "ClaudeUsage",
    "PlainClaudeUsage",
    "UsualClaudeUsage",
    "claude_counts",
    "claude_extra",
    "extra_of",
]

Fields = Mapping[str, str | None]

_BEFORE = {
    "cached_tokens": None,
    "cache_write_tokens": None,
    # The usual lifetime. Our documents have no price of ttl_12h_tokens.
    "cache_write_tokens_details.ttl_30m_tokens": None,
    "text_tokens": None,
    "audio_tokens": "input_audio_tokens",
    "image_tokens": "input_image_tokens",
    # Only OpenRouter has it.
    "video_tokens": "input_video_tokens",
}
_AFTER = {
    "reasoning_tokens": None,
    "accepted_prediction_tokens": None,
    # Billed as output, and counted in it.
    "rejected_prediction_tokens": None,
    "text_tokens": None,
    "audio_tokens": "output_audio_tokens",
    "image_tokens": "output_image_tokens",
}

CHAT: Fields = {
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")),
    **{
        f"{name}.{part}": unit
        for name in ("prompt_tokens_details", "input_tokens_details")
        for part, unit in _BEFORE.items()
    },
    **{
        f"{name}.{part}": unit
        for name in ("completion_tokens_details", "output_tokens_details")
        for part, unit in _AFTER.items()
    },
    "server_tool_use.web_search_requests": "web_searches",
}
"""Chat, responses and embeddings of OpenAI and compatible servers: openai 3.57.0, types/completion_usage.py and
types/responses/response_usage.py.
"""

CLAUDE: Fields = {
    **dict.fromkeys(
        (
            "input_tokens",
            "output_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
            "cache_creation.ephemeral_5m_input_tokens",
            "cache_creation.ephemeral_1h_input_tokens",
            "output_tokens_details.thinking_tokens",
        )
    ),
    "server_tool_use.web_search_requests": "web_searches",
    # Only the tokens of the fetched page are billed: CLAUDE_TOOLS.
    "server_tool_use.web_fetch_requests": None,
}
"""Claude, wherever it runs: anthropic 2.14.0, types/usage.py."""

CONVERSE: Fields = dict.fromkeys(
    (
        "inputTokens",
        "outputTokens",
        "totalTokens",
        "cacheReadInputTokens",
        "cacheWriteInputTokens",
        "cacheReadInputTokenCount",
        "cacheWriteInputTokenCount",
        "cacheDetails.5m",
        "cacheDetails.1h",
    )
)
"""Converse and Nova on Bedrock: botocore 1.44.8, TokenUsage."""

_MODALITIES = {"AUDIO": "audio", "IMAGE": "image", "DOCUMENT": "image", "VIDEO": "video"}
_GEMINI_PARTS = {
    "promptTokensDetails": "input_{}_tokens",
    "toolUsePromptTokensDetails": "input_{}_tokens",
    "cacheTokensDetails": "cache_{}_read_tokens",
    "candidatesTokensDetails": "output_{}_tokens",
}

GEMINI: Fields = {
    **dict.fromkeys(
        (
            "promptTokenCount",
            "candidatesTokenCount",
            "thoughtsTokenCount",
            "toolUsePromptTokenCount",
            "cachedContentTokenCount",
            "totalTokenCount",
        )
    ),
    **{f"{part}.{text}": None for part in _GEMINI_PARTS for text in ("TEXT", "MODALITY_UNSPECIFIED")},
    **{
        f"{part}.{modality}": unit.format(name)
        for part, unit in _GEMINI_PARTS.items()
        for modality, name in _MODALITIES.items()
    },
}
"""Gemini: google-genai 3.6.1, types.GenerateContentResponseUsageMetadata."""

# The cost of a reply as a vendor reports it, in USD: OpenRouter, DeepInfra (its own estimate), xAI in ticks. See
# REPORTED_COSTS.
_REPORTED = {"cost": Decimal(1), "estimated_cost": Decimal(1), "cost_in_usd_ticks": Decimal("1e-10")}

# Durations, and parts of a reported cost: neither is a billed count.
_NO_COUNTS = ("_time", "_latency", "_ms")
_PARTS_OF_COST = "cost_details."

# Of units, and of dollars for one reply. Beyond it a figure is nonsense, and would not fit into a sum.
_MOST = 10**15

_NOTHING = Extra()


def extra_of(usage: Mapping[str, Any], fields: Fields, *, others: Extra = _NOTHING) -> Extra | None:
    """Return the parts of this usage that are not plain tokens, plus `others` from the reply; None without any."""
    units = dict(others.units)
    unpriced, reported = others.unpriced, None
    for path, count in _counts(usage):
        if path in _REPORTED:
            reported = Decimal(str(count)) * _REPORTED[path] if 0 <= count < _MOST else None
            continue
        unit = fields.get(path, "")
        if unit is None or path.startswith(_PARTS_OF_COST) or path.endswith(_NO_COUNTS):
            continue
        if unit and 0 <= count < _MOST and count == int(count):
            units[unit] = units.get(unit, 0) + int(count)
        else:
            # Also an impossible count: below 0, fractional, or infinite.
            unpriced = unpriced or f"usage.{path} = {count}"
    if usage.get("is_byok") is True:
        # Then it is OpenRouter's fee alone, and the vendor behind it bills the tokens.
        reported = None
    extra = others._replace(units=tuple(sorted(units.items())), unpriced=unpriced, reported_usd=reported)
    return None if extra == _NOTHING else extra


def _counts(usage: Mapping[str, Any], start: str = "") -> list[tuple[str, int | float]]:
    """Return the counts that are not 0, by their paths. Lists name their parts by modality, or by time to live."""
    counts: list[tuple[str, int | float]] = []
    for name, value in usage.items():
        # A flag is no count, and an abstract class takes longer to ask.
        kind = type(value)
        if kind is int or kind is float:
            if value:
                counts.append((start + name, value))
        elif kind is dict:
            counts += _counts(value, f"{start}{name}.")
        elif kind is list:
            for part in value:
                if isinstance(part, dict):
                    which = next((part[key] for key in ("modality", "ttl") if isinstance(part.get(key), str)), "?")
                    counts += ((f"{start}{name}.{which}", count) for _, count in _counts(part))
        elif kind is str and value.isdecimal() and len(value) < 20 and int(value):  # noqa: PLR2004 -- digits of 64 bits
            # Google sometimes writes counts as texts; a word is not a count.
            counts.append((start + name, int(value)))
    return counts


# Words for the ordinary tier. Priority has the price of a commitment, which replies do not show (CLAUDE_TIERS). Not
# sets: a server may send a list in the place of a word, and a list cannot be looked up in a set.
_USUAL_TIERS = (None, "standard", "batch")
_USUAL_GEOS = (None, "", "not_available", "global")
# Their searches are counted in `usage`, or they cost nothing but tokens.
_COUNTED_TOOLS = frozenset({"web_search", "web_fetch", "tool_search_tool_regex", "tool_search_tool_bm25"})


def claude_extra(
    usage: Mapping[str, Any], tools: frozenset[str] = frozenset(), *, others: Extra = _NOTHING
) -> Extra | None:
    """Return the parts of Claude's usage that are not plain tokens. `tools`: the used server tools in the reply."""
    tier, unpriced = others.tier, others.unpriced
    if (named := usage.get("service_tier")) not in _USUAL_TIERS:
        tier = ("service_tier", str(named))
    if (speed := usage.get("speed")) not in (None, "standard"):
        tier = ("speed", str(speed))
    geo = usage.get("inference_geo")
    # Code runs at a price by the hour, after an allowance of the account that replies do not show: CLAUDE_TOOLS.
    if unpriced is None and (uncounted := sorted(tools - _COUNTED_TOOLS)):
        unpriced = f"the server tool '{uncounted[0]}'"
    return extra_of(usage, CLAUDE, others=Extra(tier, None if geo in _USUAL_GEOS else str(geo), unpriced=unpriced))


class _Creation(Struct, gc=False):
    ephemeral_1h_input_tokens: int | None = None


class _Details(Struct, gc=False):
    thinking_tokens: int | None = None


class ClaudeUsage(Struct, gc=False):
    """Tokens as Claude counts them."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _Creation | None = None
    output_tokens_details: _Details | None = None


class _PlainCreation(_Creation, gc=False, forbid_unknown_fields=True):
    ephemeral_5m_input_tokens: int | None = None


class _PlainDetails(_Details, gc=False, forbid_unknown_fields=True):
    pass


class _NoTools(Struct, gc=False, forbid_unknown_fields=True):
    web_search_requests: Literal[0] | None = None
    web_fetch_requests: int | None = None


class PlainClaudeUsage(ClaudeUsage, gc=False, forbid_unknown_fields=True):
    """Usage with nothing but plain tokens in it. Any other is read by `claude_extra`."""

    cache_creation: _PlainCreation | None = None
    output_tokens_details: _PlainDetails | None = None
    server_tool_use: _NoTools | None = None
    service_tier: Literal["standard", "batch"] | None = None
    speed: Literal["standard"] | None = None
    inference_geo: Literal["not_available", "global"] | None = None


class UsualClaudeUsage(PlainClaudeUsage, kw_only=True, gc=False, forbid_unknown_fields=True):
    """Plain usage with both of the counts that nearly all replies have."""

    input_tokens: int
    output_tokens: int


def claude_counts(read: ClaudeUsage) -> tuple[int, int, int, int, int, int]:
    """Return the counts of a usage in the order of TOKENS."""
    written, cached = read.cache_creation_input_tokens or 0, read.cache_read_input_tokens or 0
    hourly = 0 if read.cache_creation is None else read.cache_creation.ephemeral_1h_input_tokens or 0
    thinking = 0 if read.output_tokens_details is None else read.output_tokens_details.thinking_tokens or 0
    # Claude's input_tokens exclude the caches; the sum is the whole input.
    all_input = (read.input_tokens or 0) + written + cached
    return all_input, read.output_tokens or 0, cached, written, hourly, thinking
