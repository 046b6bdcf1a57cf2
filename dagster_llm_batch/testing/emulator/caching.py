"""The cached tokens of a prompt at the vendor: an answer function around another one.

    Emulator(answer=PromptCache())

OpenAI       automatic: prompts of 1,024 tokens or more whose beginning came before; in steps of 128 tokens
             https://platform.openai.com/docs/guides/prompt-caching
Anthropic    marked by `cache_control`: the first request writes the prefix, later ones read it, if it is long
             https://platform.claude.com/docs/en/build-with-claude/prompt-caching

Every prefix that came before is a hit here. Vendors guarantee less: for batches Anthropic documents 30 to 98 %. This
applies to these two vendors only: requests to others reach an answer function in the same forms.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dagster_llm_batch.testing.emulator.answers import AnswerFunction, Body, Reply, as_reply, simulated_answer

__all__ = ["PromptCache"]

_CHARACTERS_PER_TOKEN = 4
_OPENAI = ("/v1/chat/completions", "/v1/responses")
_OPENAI_LEAST, _OPENAI_STEP = 1_024, 128
_ANTHROPIC = "/v1/messages"
_ANTHROPIC_LEAST = 1_024
_ANTHROPIC_LEAST_OF = {"haiku-4-5": 4_096, "opus-4-5": 4_096, "opus-4-6": 4_096, "haiku": 2_048}


class PromptCache:
    """Answers as `answer` does, with the cached tokens that the vendor would count. Remembers as long as it lives."""

    def __init__(self, answer: AnswerFunction = simulated_answer) -> None:
        self._answer = answer
        self._seen: set[bytes] = set()
        self._lock = threading.Lock()

    def __call__(self, body: Body, endpoint: str) -> Reply:
        """Return the answer to a request."""
        reply = as_reply(self._answer(body, endpoint))
        with self._lock:
            if endpoint in _OPENAI:
                return replace(reply, cached_tokens=self._openai(body))
            if endpoint == _ANTHROPIC and (marked := _marked(body)):
                tokens = len(marked) // _CHARACTERS_PER_TOKEN
                if tokens >= _anthropic_least(str(body.get("model"))):
                    read = tokens if self._is_known(body, marked) else 0
                    return replace(reply, cached_tokens=read, cache_write_tokens=tokens - read)
        return reply

    def _openai(self, body: Body) -> int:
        text = "".join(text for text, _ in _blocks([body.get("instructions"), body.get("messages", body.get("input"))]))
        cached = 0
        for tokens in range(_OPENAI_LEAST, len(text) // _CHARACTERS_PER_TOKEN + 1, _OPENAI_STEP):
            if self._is_known(body, text[: tokens * _CHARACTERS_PER_TOKEN]):
                cached = tokens
        return cached

    def _is_known(self, body: Body, prefix: str) -> bool:
        """Return whether this model has had a prompt that begins so; now it has."""
        key = hashlib.sha256(f"{body.get('model')}\0{prefix}".encode("utf-8", "surrogatepass")).digest()
        is_known = key in self._seen
        self._seen.add(key)
        return is_known


def _anthropic_least(model: str) -> int:
    return next((least for name, least in _ANTHROPIC_LEAST_OF.items() if name in model), _ANTHROPIC_LEAST)


def _marked(body: Body) -> str:
    """Return all text up to the last mark."""
    blocks = list(_blocks([body.get("system"), body.get("messages")]))
    last = max((at for at, (_, is_marked) in enumerate(blocks) if is_marked), default=-1)
    return "".join(text for text, _ in blocks[: last + 1])


def _blocks(value: Any) -> Iterator[tuple[str, bool]]:
    """Yield the texts of a request in their order, and which of them a mark ends."""
    if isinstance(value, str):
        yield value, False
    elif isinstance(value, list):
        for item in value:
            yield from _blocks(item)
    elif isinstance(value, Mapping):
        for text, is_marked in _blocks([value.get("content"), value.get("text")]):
            yield text, is_marked or "cache_control" in value
