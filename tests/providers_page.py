"""`python -m tests.providers_page`: the tables of docs/reference/providers.md, made by asking the code itself.

With --write, into the page, each between its two marks.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.errors import ResponseSchemaError
from dagster_llm_batch.providers.openai_api.servers import SERVERS, Fact, Server
from dagster_llm_batch.providers.openrouter.servers import INLINE_SERVERS, InlineServer
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.types import Usage
from tests.providers.schema_matrix import CONSTRUCTS, TARGETS, Construct, Target

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "providers.md"
_AT = datetime(2026, 11, 24, tzinfo=UTC)  # the page must not change on its own
_NOBODY = "http://127.0.0.1:9"
_ADDRESSES = SimpleNamespace(
    **{f"{name}_base_url": _NOBODY for name in ("openai", "anthropic", "vertex", "gemini", "openrouter")},
    bedrock_url=_NOBODY,
)
_PRICED = (
    ("anthropic", "anthropic", "claude-3-5-sonnet-20241022"),
    ("anthropic", "anthropic", "claude-3-opus-20240229"),
    ("anthropic", "anthropic", "claude-3-haiku-20240307"),
    ("anthropic", "anthropic", "claude-haiku-4-5"),
    ("openai", "openai", "gpt-4o"),
    ("openai", "openai", "gpt-5-nano"),
    ("openai", "openai", "text-embedding-3-small"),
    ("openai", "openai", "omni-moderation-latest"),
    ("openai (Azure)", "azure", "gpt-4o"),
    ("openai (Groq)", "groq", "openai/gpt-oss-120b"),
    ("bedrock", "aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("bedrock", "aws", "amazon.nova-micro-v1:0"),
    ("bedrock", "aws", "arn:aws:bedrock:…:application-inference-profile/abc"),
    ("vertex", "google", "gemini-2.5-flash"),
    ("vertex (Claude in a region)", "google/regional", "claude-sonnet-4-5@20250929"),
    ("gemini", "google", "gemini-2.5-flash"),
    ("openrouter", "openrouter", "openai/gpt-4o"),
)


def providers() -> list[str]:
    """List the providers, with the settings and extra of each."""
    rows = ["| Provider | Settings | Extra | Billed by |", "| --- | --- | --- | --- |"]
    for name, entry in PROVIDERS.items():
        extra = f"`{entry.extra}`" if entry.extra else "none"
        resource = entry.resource.partition(":")[2]
        rows.append(f"| {name} | `{resource}` | {extra} | {entry.price_book or 'not billed'} |")
    return rows


def servers() -> list[str]:
    """List the facts about each server with the Batch API of OpenAI or of OpenRouter, with their sources."""
    header = ["Preset", "Address", "Answers", "Requests", "Bytes", "Window", "Request file", "Price"]
    rows = [_row(header), "| --- | --- | --- | --: | --: | --- | --- | --- |"]
    presets = {**SERVERS, **INLINE_SERVERS}
    rows += [_row([f"`{name}`", *_known(server)]) for name, server in presets.items()]
    for name, server in presets.items():
        facts = {"Counts": server.counts, "Errors": server.errors, "Most tokens of a reply": server.output_tokens}
        if server.has_pages is not None and not server.has_pages.value:
            facts["List"] = Fact("one, without pages", server.has_pages.source)
        if server.keeps_metadata is None and not isinstance(server, InlineServer):
            facts["Metadata"] = Fact("unknown; the name of its request file identifies a batch", "")
        told = [f"{what}: {_shown(fact)}" for what, fact in facts.items() if fact is not None]
        told += [_shown(quirk) for quirk in server.quirks]
        known = [fact for fact in [*vars(server).values(), *server.quirks] if isinstance(fact, Fact)]
        sources = ", ".join(dict.fromkeys(fact.source for fact in known))
        rows += [
            "",
            f"**{server.title}** (`{name}`), from {sources}",
            *([""] if told else []),
            *(f"- {one}" for one in told),
        ]
    return rows


def _known(server: Server) -> list[str]:
    windows, expiry, endpoints = server.windows, server.expiry, server.endpoints
    return [
        "yours" if server.base_url.value is None else f"`{server.base_url.value}`" + _mark(server.base_url),
        "" if endpoints is None else ", ".join(one.value for one in endpoints.value) + _mark(endpoints),
        "" if server.max_requests is None else f"{server.max_requests.value:,}" + _mark(server.max_requests),
        "" if server.max_bytes is None else f"{server.max_bytes.value:,}" + _mark(server.max_bytes),
        ""
        if windows is None
        else (" to " if windows.value.any_between else ", ").join(windows.value.words) + _mark(windows),
        "" if expiry is None else f"kept {expiry.value.seconds // 86_400} days" + _mark(expiry),
        "" if server.price_rule is None else _shown(server.price_rule),
    ]


def _shown(fact: Fact[object]) -> str:
    return f"{fact.value:,}" + _mark(fact) if isinstance(fact.value, int) else f"{fact.value}{_mark(fact)}"


def _mark(fact: Fact[object]) -> str:
    return " °" if fact.seen_live else ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def limits() -> list[str]:
    """List the limits of one batch."""
    rows = ["| Provider | Requests | Bytes | At least |", "| --- | --: | --: | --: |"]
    seen = set()
    for target in TARGETS:
        name = target.name.partition(" ")[0]
        if name not in seen:
            seen.add(name)
            codec = target.provider(_ADDRESSES).codec(target.spec(None))
            most = codec.limits
            rows.append(f"| {name} | {most.max_requests:,} | {most.max_bytes:,} | {most.min_requests} |")
    return rows


def schemas() -> list[str]:
    """List each construct of a schema, with its support at each provider."""
    names = [target.name for target in TARGETS]
    rows = [f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for construct in CONSTRUCTS:
        cells = [_cell(construct, target) for target in TARGETS]
        rows.append(f"| {construct.name.replace('|', chr(92) + '|')} | {' | '.join(cells)} |")
    return rows


def _cell(construct: Construct, target: Target) -> str:
    try:
        target.provider(_ADDRESSES).codec(target.spec(construct.response))
    except ResponseSchemaError:
        return "refused"
    return "in words" if target.name in construct.in_words else "yes"


def prices() -> list[str]:
    """List USD per million tokens in a batch, with the basis."""
    rows = ["| Provider | Model | In | Out | Basis |", "| --- | --- | --: | --: | --- |"]
    for name, book, model in _PRICED:
        rates = tariff(book, model, _AT)
        cells = [_per_million(rates.price(usage).cost_usd) for usage in (Usage(1_000), Usage(0, 1_000))]
        rows.append(f"| {name} | `{model}` | {' | '.join(cells)} | `{rates.basis.value}` |")
    return rows


def _per_million(thousand: Decimal | None) -> str:
    return "not known" if thousand is None else f"{thousand * 1_000:f}".rstrip("0").rstrip(".") or "0"


TABLES = {"providers": providers, "servers": servers, "limits": limits, "schemas": schemas, "prices": prices}


def with_tables(page: str) -> str:
    """Return the page with the current tables."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin not in page or end not in page:
            sys.exit(f"The page needs the lines {begin} and {end}.")
        body = "\n".join([begin, "", *make(), "", end])
        page = re.sub(f"{begin}.*?{end}", lambda _, body=body: body, page, flags=re.DOTALL)  # type: ignore[misc]
    return page


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join("\n".join(make()) for make in TABLES.values()))
