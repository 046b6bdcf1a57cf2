"""Derive the form of request that a Bedrock model takes from its id. Pure.

Ids come bare (`amazon.nova-lite-v1:0`), with the region of an inference profile (`us.…`, `global.…`) or as an ARN. If
an id does not show its model, as for an application inference profile, its requests go through Converse, which is the
same for all models.

Forms: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html
"""

from __future__ import annotations

import re
from enum import StrEnum

__all__ = ["Family", "can_structure", "family_of", "plain_id", "profile_region", "takes_images"]


class Family(StrEnum):
    """The forms of `modelInput`. All but CONVERSE are the bodies of InvokeModel."""

    CLAUDE = "claude"
    NOVA = "nova"
    LLAMA = "llama"
    # as OpenAI's chat completions: Mistral, gpt-oss, Qwen, DeepSeek, …
    CHAT = "chat"
    # For text embeddings.
    TITAN = "titan"
    CONVERSE = "converse"


_REGION = re.compile(r"(?:us|eu|apac|global|jp|au|ca|sa|us-gov)\.(?=[a-z0-9-]+\.)")
# Publishers, the first parts of plain ids.
_CHAT_PUBLISHERS = "mistral|openai|qwen|deepseek|moonshot|moonshotai|minimax|zai|google|nvidia"
_PUBLISHER = re.compile(rf"(?:{_CHAT_PUBLISHERS}|ai21|amazon|anthropic|cohere|luma|meta|stability|twelvelabs|writer)\.")
_FAMILIES = (
    # The older Mistral models take a prompt with markup and report no token counts: Converse does both for them.
    (re.compile(r"mistral\.(?:mistral-7b|mixtral|mistral-large-2402|mistral-small-2402)"), Family.CONVERSE),
    (re.compile(r"anthropic\."), Family.CLAUDE),
    (re.compile(r"amazon\.nova-"), Family.NOVA),
    (re.compile(r"amazon\.titan-embed-text"), Family.TITAN),
    (re.compile(r"meta\.llama[34]"), Family.LLAMA),
    (re.compile(rf"(?:{_CHAT_PUBLISHERS})\."), Family.CHAT),
)
_UNSTRUCTURED = re.compile(
    r"amazon\.|meta\.|mistral\.(?:mistral-7b|mixtral|mistral-large-240|mistral-small-2402)"
    r"|anthropic\.claude-(?:v2|instant|3-|sonnet-4-2025|opus-4-2025|opus-4-1)"
)
_SEES = re.compile(
    r"anthropic\.claude-(?!v2|instant|3-5-haiku)|amazon\.nova-(?!micro)|meta\.llama(?:3-2-(?:11|90)b|4)|mistral\.(?:pixtral"
    r"|ministral|magistral|mistral-large-3)|google\.gemma-3|qwen\.qwen3-vl|moonshot"
)


def plain_id(model: str) -> str:
    """Return the model's id without ARN and region: `anthropic.claude-haiku-4-5-20251001-v1:0`."""
    return _REGION.sub("", model.rsplit("/", 1)[-1], count=1)


def profile_region(model: str) -> str | None:
    """Return the geography of a cross-region inference profile, the prefix of its id: `eu`, `us`, `global`, ….

    A prefix that is new at AWS counts, too, where a known publisher stands behind it.
    """
    name = model.rsplit("/", 1)[-1]
    if (known := _REGION.match(name)) is not None:
        return known[0].rstrip(".")
    prefix, _, rest = name.partition(".")
    return prefix if _PUBLISHER.match(rest) else None


def family_of(model: str) -> Family:
    """Return the form of request that this model takes; CONVERSE if the id does not show it."""
    name = plain_id(model)
    return next((family for pattern, family in _FAMILIES if pattern.match(name)), Family.CONVERSE)


def can_structure(model: str) -> bool:
    """Return whether structured outputs are documented for the model, or its id does not show it."""
    return not _UNSTRUCTURED.match(plain_id(model))


def takes_images(model: str) -> bool:
    """Return whether the model sees images, or its id does not show it."""
    name = plain_id(model)
    return bool(_SEES.match(name)) or "." not in name
