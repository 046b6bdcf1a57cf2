"""A second table of prices, with which the price book is compared: standard input and output of a million tokens.

Cut from litellm 1.110.2 (MIT, (c) Berri AI): SECOND_TABLE of `core/price_sources.py`. It has the models that the price
book finds under the same vendor and name, their shortest prompts and no caches, tiers or batches. Pure data.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cache

__all__ = ["second_prices"]


@cache
def second_prices() -> dict[tuple[str, str], tuple[Decimal, Decimal]]:
    """Return the prices of input and output, in USD a million tokens, by the book's id of the vendor and the name."""
    prices: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
    vendor = ""
    for line in _TABLE.split("\n"):
        first, *words = line.split()
        if not words:
            vendor = first.removesuffix(":")
            continue
        apiece = Decimal(first), Decimal(words[0])
        prices.update(((vendor, name), apiece) for name in words[1:])
    return prices


# Each line: the price of input, the price of output, and the names of the models that have them.
_TABLE = """\
anthropic:
0.1 0.5 claude-haiku-5-5
1 5 claude-haiku-4-5 claude-haiku-4-5-20251001
2 10 claude-sonnet-5 claude-sonnet-5-5
3 15 claude-sonnet-4-5 claude-sonnet-4-5-20250929 claude-sonnet-4-6
4 20 claude-opus-5-5
5 25 claude-opus-4-5 claude-opus-4-5-20251101 claude-opus-4-6 claude-opus-4-6-20260205 claude-opus-4-7
5 25 claude-opus-4-7-20260416 claude-opus-4-8 claude-opus-5
10 50 claude-fable-5 claude-fable-5-1
aws:
0.02 0 amazon.titan-embed-text-v2:0
0.035 0.14 amazon.nova-micro-v1:0 us.amazon.nova-micro-v1:0
0.037 0.148 apac.amazon.nova-micro-v1:0
0.04 0.04 mistral.voxtral-mini-3b-2507
0.04 0.08 google.gemma-3-4b-it
0.046 0.184 eu.amazon.nova-micro-v1:0
0.06 0.23 nvidia.nemotron-nano-9b-v2
0.06 0.24 amazon.nova-lite-v1:0 nvidia.nemotron-nano-3-30b us.amazon.nova-lite-v1:0
0.063 0.252 apac.amazon.nova-lite-v1:0
0.07 0.3 openai.gpt-oss-20b-1:0
0.072 0.276 us-gov.nvidia.nemotron-nano-9b-v2
0.072 0.288 us-gov.nvidia.nemotron-nano-3-30b
0.078 0.312 eu.amazon.nova-lite-v1:0
0.084 0.36 us-gov.openai.gpt-oss-20b-1:0
0.09 0.29 google.gemma-3-12b-it
0.1 0 amazon.titan-embed-text-v1
0.1 0.1 meta.llama3-2-1b-instruct-v1:0 mistral.ministral-3-3b-instruct us.meta.llama3-2-1b-instruct-v1:0
0.1 0.3 mistral.voxtral-small-24b-2507
0.1 0.5 anthropic.claude-haiku-5-5 global.anthropic.claude-haiku-5-5 global.openai.gpt-6-luna openai.gpt-6-luna
0.11 0.55 apac.anthropic.claude-haiku-5-5 au.anthropic.claude-haiku-5-5 eu.anthropic.claude-haiku-5-5
0.11 0.55 jp.anthropic.claude-haiku-5-5 us.anthropic.claude-haiku-5-5 us.openai.gpt-6-luna
0.12 0.6 us-gov.anthropic.claude-haiku-5-5
0.13 0.13 eu.meta.llama3-2-1b-instruct-v1:0
0.15 0.15 meta.llama3-2-3b-instruct-v1:0 mistral.ministral-3-8b-instruct us.meta.llama3-2-3b-instruct-v1:0
0.15 0.2 amazon.titan-text-lite-v1 mistral.mistral-7b-instruct-v0:2
0.15 0.6 openai.gpt-oss-120b-1:0 qwen.qwen3-32b-v1:0 qwen.qwen3-coder-30b-a3b-v1:0
0.15 0.65 nvidia.nemotron-super-3-120b
0.16 0.16 meta.llama3-2-11b-instruct-v1:0 us.meta.llama3-2-11b-instruct-v1:0
0.17 0.66 meta.llama4-scout-17b-instruct-v1:0 us.meta.llama4-scout-17b-instruct-v1:0
0.18 0.72 us-gov.openai.gpt-oss-120b-1:0
0.18 0.78 us-gov.nvidia.nemotron-super-3-120b
0.19 0.19 eu.meta.llama3-2-3b-instruct-v1:0
0.2 0.2 mistral.ministral-3-14b-instruct
0.2 0.6 amazon.titan-text-express-v1
0.2 1.2 global.openai.gpt-5.6-luna
0.22 0.22 meta.llama3-1-8b-instruct-v1:0 us.meta.llama3-1-8b-instruct-v1:0
0.22 1.32 us.openai.gpt-5.6-luna
0.23 0.38 google.gemma-3-27b-it
0.24 0.97 meta.llama4-maverick-17b-instruct-v1:0 us.meta.llama4-maverick-17b-instruct-v1:0
0.3 0.6 meta.llama3-8b-instruct-v1:0
0.3 2.5 global.amazon.nova-2-lite-v1:0
0.33 2.75 us.amazon.nova-2-lite-v1:0
0.396 3.311 jp.amazon.nova-2-lite-v1:0
0.4 2 mistral.devstral-2-123b
0.429 3.597 eu.amazon.nova-2-lite-v1:0
0.45 0.7 mistral.mixtral-8x7b-instruct-v0:1
0.45 1.8 qwen.qwen3-coder-480b-a35b-v1:0
0.5 1.5 mistral.magistral-small-2509 mistral.mistral-large-3-675b-instruct
0.53 2.66 qwen.qwen3-vl-235b-a22b
0.6 6 us.writer.palmyra-x5-v1:0 writer.palmyra-x5-v1:0
0.72 0.72 meta.llama3-1-70b-instruct-v1:0 meta.llama3-2-90b-instruct-v1:0 meta.llama3-3-70b-instruct-v1:0
0.72 0.72 us.meta.llama3-1-70b-instruct-v1:0 us.meta.llama3-2-90b-instruct-v1:0 us.meta.llama3-3-70b-instruct-v1:0
0.8 3.2 amazon.nova-pro-v1:0 us.amazon.nova-pro-v1:0
0.8 4 anthropic.claude-3-5-haiku-20241022-v1:0 eu.anthropic.claude-3-5-haiku-20241022-v1:0
0.8 4 us.anthropic.claude-3-5-haiku-20241022-v1:0
0.84 3.36 apac.amazon.nova-pro-v1:0
1 3 mistral.mistral-small-2402-v1:0
1 5 anthropic.claude-haiku-4-5-20251001-v1:0 global.anthropic.claude-haiku-4-5-20251001-v1:0
1 5 global.openai.gpt-6.1-terra
1.05 4.2 eu.amazon.nova-pro-v1:0
1.1 5.5 apac.anthropic.claude-haiku-4-5-20251001-v1:0 au.anthropic.claude-haiku-4-5-20251001-v1:0
1.1 5.5 eu.anthropic.claude-haiku-4-5-20251001-v1:0 jp.anthropic.claude-haiku-4-5-20251001-v1:0
1.1 5.5 us.anthropic.claude-haiku-4-5-20251001-v1:0 us.openai.gpt-6.1-terra
1.35 5.4 deepseek.r1-v1:0 us.deepseek.r1-v1:0
1.68 5.28 global.zai.glm-5.3
1.848 5.808 us.zai.glm-5.3
2 6 eu.mistral.pixtral-large-2502-v1:0 mistral.pixtral-large-2502-v1:0 us.mistral.pixtral-large-2502-v1:0
2 10 anthropic.claude-sonnet-5 anthropic.claude-sonnet-5-5 global.anthropic.claude-sonnet-5
2 10 global.anthropic.claude-sonnet-5-5 global.openai.gpt-6-sol global.openai.gpt-6.1-sol openai.gpt-6-sol
2 12 global.openai.gpt-5.6-terra
2.2 11 apac.anthropic.claude-sonnet-5 apac.anthropic.claude-sonnet-5-5 au.anthropic.claude-sonnet-5
2.2 11 au.anthropic.claude-sonnet-5-5 eu.anthropic.claude-sonnet-5 eu.anthropic.claude-sonnet-5-5
2.2 11 jp.anthropic.claude-sonnet-5 jp.anthropic.claude-sonnet-5-5 us.anthropic.claude-sonnet-5
2.2 11 us.anthropic.claude-sonnet-5-5 us.openai.gpt-6-sol us.openai.gpt-6.1-sol
2.2 13.2 us.openai.gpt-5.6-terra
2.4 12 us-gov.anthropic.claude-sonnet-5 us-gov.anthropic.claude-sonnet-5-5
2.5 10 us.writer.palmyra-x4-v1:0 writer.palmyra-x4-v1:0
2.5 12.5 amazon.nova-premier-v1:0
2.65 3.5 meta.llama3-70b-instruct-v1:0
3 15 anthropic.claude-3-5-sonnet-20240620-v1:0 anthropic.claude-3-5-sonnet-20241022-v2:0
3 15 anthropic.claude-3-7-sonnet-20250219-v1:0 anthropic.claude-sonnet-4-20250514-v1:0
3 15 anthropic.claude-sonnet-4-5-20250929-v1:0 anthropic.claude-sonnet-4-6
3 15 apac.anthropic.claude-sonnet-4-20250514-v1:0 claude-sonnet-4-5-20250929-v1:0
3 15 eu.anthropic.claude-3-5-sonnet-20240620-v1:0 eu.anthropic.claude-3-5-sonnet-20241022-v2:0
3 15 eu.anthropic.claude-3-7-sonnet-20250219-v1:0 eu.anthropic.claude-sonnet-4-20250514-v1:0
3 15 global.anthropic.claude-sonnet-4-20250514-v1:0 global.anthropic.claude-sonnet-4-5-20250929-v1:0
3 15 global.anthropic.claude-sonnet-4-6 global.moonshotai.kimi-k3 us.anthropic.claude-3-5-sonnet-20240620-v1:0
3 15 us.anthropic.claude-3-5-sonnet-20241022-v2:0 us.anthropic.claude-3-7-sonnet-20250219-v1:0
3 15 us.anthropic.claude-sonnet-4-20250514-v1:0
3.3 16.5 apac.anthropic.claude-sonnet-4-6 au.anthropic.claude-sonnet-4-5-20250929-v1:0 au.anthropic.claude-sonnet-4-6
3.3 16.5 eu.anthropic.claude-sonnet-4-5-20250929-v1:0 eu.anthropic.claude-sonnet-4-6 in.moonshotai.kimi-k3
3.3 16.5 jp.anthropic.claude-sonnet-4-5-20250929-v1:0 jp.anthropic.claude-sonnet-4-6 moonshotai.kimi-k3
3.3 16.5 us.anthropic.claude-sonnet-4-5-20250929-v1:0 us.anthropic.claude-sonnet-4-6 us.moonshotai.kimi-k3
3.6 18 us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0
4 12 mistral.mistral-large-2402-v1:0
4 20 anthropic.claude-opus-5-5 global.anthropic.claude-opus-5-5 global.moonshotai.kimi-k3.1 global.openai.gpt-5.6-sol
4.4 22 au.anthropic.claude-opus-5-5 eu.anthropic.claude-opus-5-5 in.moonshotai.kimi-k3.1 jp.anthropic.claude-opus-5-5
4.4 22 us.anthropic.claude-opus-5-5 us.moonshotai.kimi-k3.1 us.openai.gpt-5.6-sol
5 25 anthropic.claude-opus-4-5-20251101-v1:0 anthropic.claude-opus-4-6-v1 anthropic.claude-opus-4-7
5 25 anthropic.claude-opus-4-8 anthropic.claude-opus-5 global.anthropic.claude-opus-4-5-20251101-v1:0
5 25 global.anthropic.claude-opus-4-6-v1 global.anthropic.claude-opus-4-7 global.anthropic.claude-opus-4-8
5 25 global.anthropic.claude-opus-5
5.5 27.5 apac.anthropic.claude-opus-4-7 au.anthropic.claude-opus-4-6-v1 au.anthropic.claude-opus-4-7
5.5 27.5 au.anthropic.claude-opus-4-8 au.anthropic.claude-opus-5 eu.anthropic.claude-opus-4-5-20251101-v1:0
5.5 27.5 eu.anthropic.claude-opus-4-6-v1 eu.anthropic.claude-opus-4-7 eu.anthropic.claude-opus-4-8
5.5 27.5 eu.anthropic.claude-opus-5 jp.anthropic.claude-opus-4-7 jp.anthropic.claude-opus-4-8
5.5 27.5 jp.anthropic.claude-opus-5 us.anthropic.claude-opus-4-5-20251101-v1:0 us.anthropic.claude-opus-4-6-v1
5.5 27.5 us.anthropic.claude-opus-4-7 us.anthropic.claude-opus-4-8 us.anthropic.claude-opus-5
10 50 anthropic.claude-fable-5 anthropic.claude-fable-5-1 global.anthropic.claude-fable-5
10 50 global.anthropic.claude-fable-5-1 global.openai.gpt-6-astra
11 55 au.anthropic.claude-fable-5 eu.anthropic.claude-fable-5 us.anthropic.claude-fable-5
11 55 us.anthropic.claude-fable-5-1 us.openai.gpt-6-astra
15 75 anthropic.claude-3-opus-20240229-v1:0 anthropic.claude-opus-4-1-20250805-v1:0
15 75 anthropic.claude-opus-4-20250514-v1:0 eu.anthropic.claude-3-opus-20240229-v1:0
15 75 eu.anthropic.claude-opus-4-1-20250805-v1:0 eu.anthropic.claude-opus-4-20250514-v1:0
15 75 us.anthropic.claude-3-opus-20240229-v1:0 us.anthropic.claude-opus-4-1-20250805-v1:0
15 75 us.anthropic.claude-opus-4-20250514-v1:0
azure:
0.022 0 text-embedding-3-small
0.05 0.4 gpt-5-nano gpt-5-nano-2025-08-07
0.1 0.4 gpt-4.1-nano gpt-4.1-nano-2025-04-14
0.1 0.5 gpt-6-luna gpt-6-luna-2026-09-22
0.11 0 ada text-embedding-ada-002
0.143 0 text-embedding-3-large
0.15 0.6 gpt-4o-mini gpt-4o-mini-2024-07-18 gpt-4o-mini-audio-preview-2024-12-17
0.2 1.2 gpt-5.6-luna gpt-5.6-luna-2026-07-09
0.2 1.25 gpt-5.4-nano gpt-5.4-nano-2026-03-17
0.25 2 gpt-5-mini gpt-5-mini-2025-08-07 gpt-5.1-codex-mini
0.4 1.6 gpt-4.1-mini gpt-4.1-mini-2025-04-14
0.5 1.5 gpt-3.5-turbo gpt-35-turbo
0.6 2.4 gpt-audio-mini gpt-audio-mini-2025-10-06
0.75 4.5 gpt-5.4-mini gpt-5.4-mini-2026-03-17
1 5 gpt-6.1-terra
1.1 4.4 o1-mini o1-mini-2024-09-12 o3-mini o3-mini-2025-01-31 o4-mini o4-mini-2025-04-16
1.25 10 gpt-5 gpt-5-2025-08-07 gpt-5-chat gpt-5-codex gpt-5.1 gpt-5.1-2025-11-13 gpt-5.1-chat gpt-5.1-codex
1.25 10 gpt-5.1-codex-max
1.5 6 codex-mini
1.75 14 gpt-5.2 gpt-5.2-2025-12-11 gpt-5.2-chat gpt-5.2-codex gpt-5.3-chat gpt-5.3-codex
2 8 gpt-4.1 gpt-4.1-2025-04-14 o3 o3-2025-04-16
2 10 gpt-6-sol gpt-6-sol-2026-09-22 gpt-6.1-sol gpt-6.1-sol-2026-09-29
2 12 gpt-5.6-terra gpt-5.6-terra-2026-07-09
2.5 10 gpt-4o gpt-4o-2024-08-06 gpt-4o-2024-11-20 gpt-4o-audio-preview-2024-12-17 gpt-audio gpt-audio-1.5
2.5 10 gpt-audio-2025-08-28
2.5 15 gpt-5.4 gpt-5.4-2026-03-05
3 12 computer-use-preview
4 20 gpt-5.6 gpt-5.6-sol gpt-5.6-sol-2026-07-09
5 15 gpt-4o-2024-05-13
5 30 chat-latest gpt-5.5 gpt-5.5-2026-04-23 gpt-5.5-2026-04-24 gpt-chat-latest
10 30 gpt-4-0125-preview gpt-4-1106-preview
10 40 o3-deep-research
10 50 gpt-6-astra gpt-6-astra-2026-09-03
11 33 gpt-4-turbo gpt-4-turbo-2024-04-09
15 60 o1 o1-2024-12-17
15 120 gpt-5-pro
20 80 o3-pro o3-pro-2025-06-10
21 168 gpt-5.2-pro gpt-5.2-pro-2025-12-11
30 180 gpt-5.4-pro gpt-5.4-pro-2026-03-05 gpt-5.5-pro gpt-5.5-pro-2026-04-23
google:
0.1 0.4 gemini-2.5-flash-lite gemini-2.5-flash-lite-preview-09-2025
0.1 0.5 claude-haiku-5-5 claude-haiku-5-5@default
0.15 0 gemini-embedding-001
0.2 0 gemini-embedding-2 gemini-embedding-2-preview
0.25 1.25 claude-3-haiku claude-3-haiku@20240307
0.25 1.5 gemini-3.1-flash-lite gemini-3.1-flash-lite-preview
0.3 2.5 gemini-2.5-flash gemini-2.5-flash-preview-09-2025 gemini-3.5-flash-lite gemini-flash-lite-latest
0.5 3 gemini-3-flash-preview
0.75 3.75 gemini-3.6-flash gemini-3.7-flash gemini-3.8-flash gemini-flash-latest
1 5 claude-3-5-haiku claude-3-5-haiku@20241022 claude-haiku-4-5 claude-haiku-4-5@20251001 gemini-robotics-er-2-preview
1 5 gemini-robotics-er-2-streaming-preview
1 20 gemini-2.5-pro-preview-tts
1.25 10 gemini-2.5-pro
1.5 7.5 gemini-3.8-flash-cyber
1.5 9 gemini-3.5-flash gemini-omni-1.1-flash gemini-omni-flash-preview
2 10 claude-sonnet-5 claude-sonnet-5-5 claude-sonnet-5-5@default claude-sonnet-5@default gemini-4-argon
2 12 gemini-3.1-pro-preview gemini-3.1-pro-preview-customtools gemini-pro-latest
3 15 claude-3-5-sonnet claude-3-5-sonnet@20240620 claude-3-sonnet claude-3-sonnet@20240229 claude-sonnet-4-5
3 15 claude-sonnet-4-5@20250929 claude-sonnet-4-6 claude-sonnet-4-6@default
4 20 claude-opus-5-5 claude-opus-5-5@default
5 25 claude-opus-4-5 claude-opus-4-5@20251101 claude-opus-4-6 claude-opus-4-6@default claude-opus-4-7
5 25 claude-opus-4-7@default claude-opus-4-8 claude-opus-4-8@default claude-opus-5 claude-opus-5@default
10 50 claude-fable-5 claude-fable-5-1 claude-fable-5-1@default claude-fable-5@default
groq:
0.03 0.03 meta-llama/llama-prompt-guard-2-22m
0.04 0.04 meta-llama/llama-prompt-guard-2-86m
0.075 0.3 openai/gpt-oss-20b openai/gpt-oss-safeguard-20b
0.15 0.6 openai/gpt-oss-120b
0.8 4 qwen/qwen3.8-27b
mistral:
0.1 0 mistral-embed mistral-embed-2312
0.1 0.1 ministral-3b-2512
0.1 0.3 devstral-small-latest
0.1 0.4 voxtral-small-2507 voxtral-small-latest
0.15 0 codestral-embed codestral-embed-2505
0.15 0.15 ministral-8b-2512 ministral-8b-latest
0.15 0.5 zai-glm-5-3-flash
0.15 0.6 magistral-small-latest mistral-small-2603 mistral-small-latest
0.2 0.2 ministral-14b-2512
0.25 0.25 mistral-tiny
0.3 0.3 open-mistral-nemo
0.3 0.9 codestral-2508 codestral-latest
0.3 1.2 deepseek-v4-1-flash-1017
0.5 1.5 mistral-large-2512 mistral-large-latest
0.7 2.1 mistral-large-4 mistral-large-4-0
1.4 4.4 zai-glm-5-3
1.5 7.5 magistral-medium-latest mistral-medium mistral-medium-2604 mistral-medium-3 mistral-medium-3-5
1.5 7.5 mistral-medium-3.5 mistral-medium-latest
2 6 pixtral-large-latest
openai:
0.02 0 text-embedding-3-small
0.05 0.4 gpt-5-nano gpt-5-nano-2025-08-07
0.1 0 text-embedding-ada-002 text-embedding-ada-002-v2
0.1 0.4 gpt-4.1-nano gpt-4.1-nano-2025-04-14
0.1 0.5 gpt-6-luna
0.13 0 text-embedding-3-large
0.15 0.6 gpt-4o-mini gpt-4o-mini-2024-07-18 gpt-4o-mini-audio-preview-2024-12-17 gpt-4o-mini-search-preview
0.15 0.6 gpt-4o-mini-search-preview-2025-03-11
0.2 1.2 gpt-5.6-luna
0.2 1.25 gpt-5.4-nano gpt-5.4-nano-2026-03-17
0.25 2 gpt-5-mini gpt-5-mini-2025-08-07 gpt-5.1-codex-mini
0.4 1.6 gpt-4.1-mini gpt-4.1-mini-2025-04-14
0.5 1.5 gpt-3.5-turbo gpt-3.5-turbo-0125
0.6 2.4 gpt-audio-mini gpt-audio-mini-2025-10-06 gpt-audio-mini-2025-12-15
0.75 4.5 gpt-5.4-mini gpt-5.4-mini-2026-03-17
1 2 gpt-3.5-turbo-1106
1 5 gpt-6.1-terra
1.1 4.4 o3-mini o3-mini-2025-01-31 o4-mini o4-mini-2025-04-16
1.25 10 gpt-5 gpt-5-2025-08-07 gpt-5-chat gpt-5-chat-latest gpt-5-codex gpt-5-search-api gpt-5.1 gpt-5.1-2025-11-13
1.25 10 gpt-5.1-chat-latest gpt-5.1-codex gpt-5.1-codex-max
1.75 14 gpt-5.2 gpt-5.2-2025-12-11 gpt-5.2-chat-latest gpt-5.2-codex gpt-5.3-chat-latest gpt-5.3-codex
2 8 gpt-4.1 gpt-4.1-2025-04-14 o3 o3-2025-04-16 o4-mini-deep-research o4-mini-deep-research-2025-06-26
2 10 gpt-6-sol gpt-6.1-sol
2 12 gpt-5.6-terra
2.5 10 gpt-4o gpt-4o-2024-08-06 gpt-4o-2024-11-20 gpt-4o-audio-preview-2024-12-17 gpt-4o-audio-preview-2025-06-03
2.5 10 gpt-4o-search-preview gpt-4o-search-preview-2025-03-11 gpt-audio gpt-audio-1.5 gpt-audio-2025-08-28
2.5 15 gpt-5.4 gpt-5.4-2026-03-05
3 4 gpt-3.5-turbo-16k
3 12 computer-use-preview computer-use-preview-2025-03-11
4 20 gpt-5.6 gpt-5.6-sol
5 15 gpt-4o-2024-05-13
5 25 gpt-rosalind-discovery gpt-rosalind-research
5 30 chat-latest gpt-5.5 gpt-5.5-2026-04-23
10 30 gpt-4-1106-preview gpt-4-turbo gpt-4-turbo-2024-04-09
10 40 o3-deep-research o3-deep-research-2025-06-26
10 50 gpt-6-astra
12.5 75 gpt-5.5-cyber gpt-5.6-cyber
15 60 o1 o1-2024-12-17
15 75 gpt-6-rosalind
15 120 gpt-5-pro gpt-5-pro-2025-10-06
20 80 o3-pro o3-pro-2025-06-10
20 100 gpt-6-cyber
21 168 gpt-5.2-pro gpt-5.2-pro-2025-12-11
30 60 gpt-4 gpt-4-0613
30 180 gpt-5.4-pro gpt-5.4-pro-2026-03-05 gpt-5.5-pro gpt-5.5-pro-2026-04-23
150 600 o1-pro o1-pro-2025-03-19
together:
0.042 0 together/Tev1-4B-experimental
0.15 0.47 Qwen/Qwen3.8-Flash
0.15 0.5 nvidia/NVIDIA-Nemotron-3.5-Super-VL zai-org/GLM-5.3-Flash
0.15 0.6 MiniMaxAI/MiniMax-M3.1-Flash openai/gpt-oss-120b
0.17 0.25 Qwen/Qwen3.5-9B
0.18 0.18 meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo
0.18 0.59 meta-llama/Llama-4-Scout-17B-16E-Instruct
0.2 0.6 ricursive-ai/Ripple-65B-Preview
0.3 1.2 MiniMaxAI/MiniMax-M3 deepseek-ai/DeepSeek-V4.1-Flash deepseek-ai/DeepSeek-V4.1-Flash-1017
0.32 1.28 Qwen/Qwen3.7-Plus
0.35 1.5 meta-models/Muse-Glimmer-30B
0.4 1.2 reflection/Beam-1.0-501B-A23B
0.5 3 Qwen/Qwen3.6-Plus
0.6 0.6 mistralai/Mixtral-8x7B-Instruct-v0.1
0.88 0.88 meta-llama/Meta-Llama-3.1-70B-Instruct-Turbo
1 4.05 thinkingmachines/Inkling
1.04 1.04 meta-llama/Llama-3.3-70B-Instruct-Turbo
1.25 4.25 meta-models/Muse-Spark-Open-816B-A42B
1.32 3.96 deepseek-ai/DeepSeek-V4-Pro-0813
1.4 4.4 zai-org/GLM-5.2 zai-org/GLM-5.3
2 6 Qwen/Qwen3.8-2.4T-A95B
2 10 moonshotai/Kimi-K3.1-Pro
2.5 7.5 Qwen/Qwen3.7-Max
3 15 moonshotai/Kimi-K3
x-ai:
1 2 grok-build-0.1 grok-code-fast grok-code-fast-1 grok-code-fast-1-0825
1.25 2.5 grok-4.20 grok-4.20-0309-non-reasoning grok-4.20-0309-reasoning grok-4.20-multi-agent
1.25 2.5 grok-4.20-multi-agent-0309 grok-4.20-multi-agent-beta-0309 grok-4.20-multi-agent-beta-latest
1.25 2.5 grok-4.20-multi-agent-latest grok-4.3 grok-4.3-latest
2 6 grok-4.5 grok-4.5-latest grok-4.6 grok-4.7"""
