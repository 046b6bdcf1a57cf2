"""The emulated prompt cache counts exactly the tokens that the vendors document."""

from __future__ import annotations

import pytest

from dagster_llm_batch.testing.emulator import PromptCache

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
RULES = "rule " * 1_600  # 2,000 tokens at four characters each


def chat(system: str, text: str, model: str = "gpt-4o-mini") -> dict:
    return {"model": model, "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}]}


def message(system: str, text: str, model: str = "claude-sonnet-4-5", *, mark: bool = True) -> dict:
    block = {"type": "text", "text": system, **({"cache_control": {"type": "ephemeral", "ttl": "1h"}} if mark else {})}
    return {"model": model, "max_tokens": 9, "system": [block], "messages": [{"role": "user", "content": text}]}


def counted(cache: PromptCache, body: dict, endpoint: str) -> tuple[int, int]:
    reply = cache(body, endpoint)
    return reply.cached_tokens, reply.cache_write_tokens


def test_openai_reads_a_long_beginning_that_came_before_in_steps_of_128_tokens_and_bills_no_write() -> None:
    cache = PromptCache()
    assert counted(cache, chat(RULES, "a"), CHAT) == (0, 0)
    assert counted(cache, chat(RULES, "b"), CHAT) == (1_920, 0)  # 1,024 and seven steps
    assert counted(cache, chat(RULES, "b", model="gpt-4o"), CHAT) == (0, 0)
    assert counted(cache, chat("x" + RULES, "b"), CHAT) == (0, 0)


def test_openai_reads_nothing_of_a_short_prompt() -> None:
    cache = PromptCache()
    assert [counted(cache, chat(RULES[:4_000], "a"), CHAT) for _ in range(2)] == [(0, 0), (0, 0)]


def test_anthropic_writes_a_marked_prefix_once_and_reads_it_from_then_on() -> None:
    cache = PromptCache()
    assert counted(cache, message(RULES, "a"), MESSAGES) == (0, 2_000)
    assert counted(cache, message(RULES, "b"), MESSAGES) == (2_000, 0)
    assert counted(cache, message("x" + RULES, "b"), MESSAGES) == (0, 2_000)


@pytest.mark.parametrize(
    "body",
    [message(RULES, "a", mark=False), message(RULES[:4_000], "a"), message(RULES, "a", model="claude-haiku-4-5")],
    ids=["without a mark", "a short prefix", "a model that takes longer ones only"],
)
def test_anthropic_caches_only_marked_prefixes_that_are_long_enough(body) -> None:
    cache = PromptCache()
    assert [counted(cache, body, MESSAGES) for _ in range(2)] == [(0, 0), (0, 0)]


def test_other_endpoints_are_answered_as_without_a_cache() -> None:
    cache = PromptCache()
    assert [counted(cache, chat(RULES, "a"), "/v1/embeddings") for _ in range(2)] == [(0, 0), (0, 0)]
