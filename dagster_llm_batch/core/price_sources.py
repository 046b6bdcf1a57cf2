"""Sources of our price rules: the vendor's document of each, and the day on which we read it.

The price book has the prices of models. Our own rules add discounts, surcharges, the billed parts of a reply, and the
number of tokens of an image. A rule names its source here, and has no other date: so one place has the oldest date,
which `dagster-llm-batch prices` and `doctor` show. Pure data.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import NamedTuple

__all__ = [
    "ANTHROPIC_BATCH",
    "AWS_BATCH",
    "AWS_TIERS",
    "AZURE_BATCH",
    "CLAUDE_CACHES",
    "CLAUDE_ON_VERTEX",
    "CLAUDE_RESIDENCY",
    "CLAUDE_TIERS",
    "CLAUDE_TOOLS",
    "GOOGLE_BATCH",
    "GOOGLE_PRICES",
    "GOOGLE_SEARCHES",
    "GROQ_BATCH",
    "IMAGE_TOKENS",
    "MISTRAL_BATCH",
    "MOST_OUTPUT",
    "OPENAI_MODERATIONS",
    "OPENAI_PRICES",
    "OPENAI_SEARCHES",
    "OPENROUTER_BATCH",
    "REPORTED_COSTS",
    "SECOND_TABLE",
    "SOURCES",
    "USAGE_SHAPES",
    "PriceSource",
    "oldest_source",
]


class PriceSource(NamedTuple):
    """A vendor's document."""

    rule: str  # the rule that we take from it
    document: str
    read_on: date  # the first day of the month if only the month is known
    books: tuple[str, ...]  # price book ids of the vendors whose costs rest on it; () is all


OPENAI_PRICES = PriceSource(
    "half the price in a batch, tiers by their own lists, searches apiece, other tools at no cost but tokens",
    "https://developers.openai.com/api/docs/pricing",
    date(2026, 10, 12),
    ("openai",),
)
OPENAI_MODERATIONS = PriceSource(
    "moderations cost nothing",
    "the tables of litellm 1.110.2 and genai-prices 0.2.3, from OpenAI's pages",
    date(2026, 11, 27),
    ("openai",),
)
OPENAI_SEARCHES = PriceSource(
    "a call of web search that only opens a page is not billed as a search",
    "https://developers.openai.com/api/docs/guides/tools-web-search",
    date(2026, 10, 1),
    ("openai",),
)
AZURE_BATCH = PriceSource(
    "half the price of Global Standard in a batch",
    "https://learn.microsoft.com/azure/foundry/openai/how-to/batch",
    date(2026, 3, 1),
    ("azure",),
)
ANTHROPIC_BATCH = PriceSource(
    "half the price in a batch",
    "https://platform.claude.com/docs/en/build-with-claude/batch-processing#pricing",
    date(2026, 10, 14),
    ("anthropic",),
)
CLAUDE_CACHES = PriceSource(
    "1.25 times the price of input for a write to the cache, twice for one for an hour",
    "https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing",
    date(2026, 8, 1),
    ("anthropic", "aws", "google"),
)
CLAUDE_RESIDENCY = PriceSource(
    "1.1 times the price where a reply has to be made in the US",
    "https://platform.claude.com/docs/en/about-claude/pricing#data-residency-pricing",
    date(2026, 8, 1),
    ("anthropic",),
)
CLAUDE_TIERS = PriceSource(
    "fast replies by their own list, priority at the price of a commitment, missing from replies, searches apiece",
    "https://platform.claude.com/docs/en/about-claude/pricing",
    date(2026, 10, 14),
    ("anthropic", "google"),
)
CLAUDE_TOOLS = PriceSource(
    "web fetches cost only tokens, code runs at a price by the hour that is missing from replies",
    "https://platform.claude.com/docs/en/agents-and-tools/tool-use/code-execution-tool",
    date(2026, 8, 1),
    ("anthropic", "google"),
)
CLAUDE_ON_VERTEX = PriceSource(
    "1.1 times the price of the global endpoint in a region, or several",
    "https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai#global-vs-regional-endpoints",
    date(2026, 8, 1),
    ("google",),
)
AWS_BATCH = PriceSource(
    "half the price on demand in a batch", "https://aws.amazon.com/bedrock/pricing/", date(2026, 11, 1), ("aws",)
)
AWS_TIERS = PriceSource(
    "tiers have a premium or a discount of unknown amount: replies in one have an unknown cost",
    "https://aws.amazon.com/bedrock/service-tiers",
    date(2026, 11, 27),
    ("aws",),
)
GOOGLE_PRICES = PriceSource(
    "one price for all media without a listed one, flex and priority by their list, maps at their own price",
    "https://ai.google.dev/gemini-api/docs/pricing",
    date(2026, 10, 14),
    ("google",),
)
GOOGLE_BATCH = PriceSource(
    "half the price in a batch, and tokens read from a cache by its list, else at the standard price; so on Vertex AI",
    "https://ai.google.dev/gemini-api/docs/batch-api",
    date(2026, 10, 14),
    ("google",),
)
GOOGLE_SEARCHES = PriceSource(
    "up to Gemini 2.5 a prompt that was grounded counts once, since Gemini 3 each query",
    "https://ai.google.dev/gemini-api/docs/google-search#pricing",
    date(2026, 10, 1),
    ("google",),
)
GROQ_BATCH = PriceSource(
    "half the price in a batch", "https://console.groq.com/docs/batch", date(2026, 11, 1), ("groq",)
)
MISTRAL_BATCH = PriceSource(
    "half the price in a batch", "https://docs.mistral.ai/capabilities/batch", date(2026, 10, 14), ("mistral",)
)
OPENROUTER_BATCH = PriceSource(
    "a model's batches are a model of their own",
    "https://openrouter.ai/docs/features/batches",
    date(2026, 11, 1),
    ("openrouter",),
)
REPORTED_COSTS = PriceSource(
    "costs that replies report: OpenRouter and DeepInfra in dollars, xAI in ticks of 1e-10 dollars",
    "https://openrouter.ai/docs/use-cases/usage-accounting, https://docs.x.ai/developers/cost-tracking",
    date(2026, 11, 27),
    ("openrouter", "deepinfra", "x-ai"),
)
SECOND_TABLE = PriceSource(
    "a second table of standard prices: where it is more than 5 % dearer than the price book, its price holds",
    "the table of litellm 1.110.2, from the vendors' pages",
    date(2026, 11, 27),
    ("anthropic", "aws", "azure", "google", "groq", "mistral", "openai", "together", "x-ai"),
)
USAGE_SHAPES = PriceSource(
    "possible counts of a reply's usage, and the counts that are plain tokens",
    "the types of openai 3.57.0, anthropic 2.14.0, botocore 1.44.8 and google-genai 3.6.1",
    date(2026, 11, 27),
    (),
)
IMAGE_TOKENS = PriceSource(
    "number of tokens of an image",
    "https://platform.claude.com/docs/en/build-with-claude/vision, "
    "https://developers.openai.com/api/docs/guides/images-vision, "
    "https://ai.google.dev/gemini-api/docs/media-resolution",
    date(2026, 11, 27),
    (),
)
MOST_OUTPUT = PriceSource(
    "largest number of tokens of a reply",
    "the table of litellm 1.110.2, from the vendors' pages",
    date(2026, 11, 27),
    (),
)

SOURCES: tuple[PriceSource, ...] = tuple(value for value in list(globals().values()) if isinstance(value, PriceSource))
"""All of them."""


def oldest_source(books: Collection[str | None] | None = None) -> PriceSource:
    """Return the source that was read longest ago, of those that these ids in the price book rest on (None: all)."""
    wanted = None if books is None else {(book or "").partition("/")[0] for book in books}
    used = [source for source in SOURCES if wanted is None or not source.books or not wanted.isdisjoint(source.books)]
    return min(used, key=lambda source: source.read_on)
