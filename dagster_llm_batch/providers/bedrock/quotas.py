"""Limits of one batch of a model, from the account's Service Quotas if they can be read. Pure.

A quota names its model in words ("Claude 3.5 Sonnet v2"), a request by id ("…claude-3-5-sonnet-20241022-v2:0"). They
are the same model if all words are the same, except for vendor, date and a first version. A model without its own quota
has the documented defaults. A job here is one file, so the limits of both apply. A gigabyte counts as 10^9 bytes.

Names: https://docs.aws.amazon.com/general/latest/gr/bedrock.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dagster_llm_batch.providers.bedrock.models import plain_id
from dagster_llm_batch.types import BatchLimits

__all__ = ["BEDROCK_LIMITS", "limits_from"]

BEDROCK_LIMITS = BatchLimits(max_requests=50_000, max_bytes=1_000_000_000, min_requests=100)
"""The common defaults; some models have others."""

_GIGABYTE = 1_000_000_000
# the range of a quota; NaN is below nothing
_MOST = 1e9
_NAMES = (
    ("min_requests", re.compile(r"Minimum number of records per batch inference job for (?P<model>.+)", re.IGNORECASE)),
    (
        "max_requests",
        re.compile(r"Records per (?:input file per )?batch inference job for (?P<model>.+)", re.IGNORECASE),
    ),
    (
        "max_bytes",
        re.compile(
            r"Batch inference (?:input file|job) size (?:\(in GB\) for (?P<model>.+)|for (?P<other>.+) \(in GB\))",
            re.IGNORECASE,
        ),
    ),
)
_VENDORS = frozenset({"anthropic", "amazon", "meta", "openai", "ai", "mistralai"})
_SAME = {"embeddings": "embed", "embedding": "embed"}
_DATE_DIGITS = 4


def limits_from(quotas: Iterable[Mapping[str, Any]], model: str, defaults: BatchLimits = BEDROCK_LIMITS) -> BatchLimits:
    """Return the limits of `model` by these quotas (`QuotaName`, `Value`)."""
    words = _id_words(model)
    values: dict[str, list[int]] = {}
    for quota in quotas:
        for field, pattern in _NAMES:
            match = pattern.fullmatch(str(quota.get("QuotaName", "")).strip())
            value = quota.get("Value")
            if match is None or not isinstance(value, int | float) or not 0 < value < _MOST:
                continue
            label = match["model"] or match.groupdict().get("other") or ""
            if _label_words(label) == words:
                values.setdefault(field, []).append(int(value * _GIGABYTE if field == "max_bytes" else value))
    return BatchLimits(
        max_requests=min(values.get("max_requests", [defaults.max_requests])),
        max_bytes=min(values.get("max_bytes", [defaults.max_bytes])),
        min_requests=max(values.get("min_requests", [defaults.min_requests])),
    )


def _id_words(model: str) -> list[str]:
    name = plain_id(model).partition(".")[2] or plain_id(model)
    # a revision or a context length
    name = re.sub(r":\d+k?$", "", name)
    return _words(re.sub(r"-\d$", "", name) if name.startswith("gpt-oss") else name)


def _label_words(label: str) -> list[str]:
    return _words(label)


def _words(text: str) -> list[str]:
    words = re.findall(r"[a-z]+\d*[a-z]*|\d+[a-z]*", text.lower().replace("embeddings", "embed"))
    split: list[str] = []
    for word in words:
        # The active parameters, as in "480b-a35b"; quotas omit them.
        if re.fullmatch(r"a\d+b", word):
            continue
        if word in ("v1", "v2", "v3") or not word[0].isalpha():
            split.append(word)
        else:
            # Ids have "llama3" where quotas have "Llama 3".
            split += [part for part in re.split(r"(?<=[a-z])(?=\d)", word) if part]
    kept = (word for word in split if word not in _VENDORS and word != "v1" and not _is_date(word))
    return sorted(_SAME.get(word, word) for word in kept)


def _is_date(word: str) -> bool:
    return word.isdecimal() and len(word) >= _DATE_DIGITS
