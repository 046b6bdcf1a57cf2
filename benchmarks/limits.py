"""Tests of spending limits: whether they hold, and their delay. Simulated replies, prices of the bundled price book.

    python -m benchmarks.limits [--rows 40] [--draws 2000] [--services openai,anthropic,bedrock,vertex,gemini]

1. Rows of several kinds go through the vendors' emulators. The table shows the billed amount, the number of steps, and
   the share of rows that were sent. Lengths of replies go up to the documented maximum.
2. The rule alone runs on random costs. The table shows how often the bill exceeds a measured limit that is below the
   cost of all rows.
"""

from __future__ import annotations

import argparse
import base64
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from google.oauth2.credentials import Credentials

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.spend_limit import LimitKind, count_releasable, is_too_few
from dagster_llm_batch.engine import Deployment, Engine, Fallback, Labeling, Resend, Spend
from dagster_llm_batch.errors import BudgetError
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.google.vertex import VertexProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply, VendorLimits, local_gcs, local_s3

KINDS: tuple[LimitKind, ...] = ("hard", "measured")
_WORDS = "where is my invoice of last month it was never sent to me please look again thank you".split()
_HAN = "你好请问我的订单什么时候可以送到谢谢您的帮助我们已经等了很久"
_PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1_024).to_bytes(4, "big") * 2
_LABELS = {"type": "object", "properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]}
_GOOD = '{"topic": "bug"}'

_BUCKET = "bucket"

# Bedrock's minimum of 100 requests is more than all rows here, so everything would go in one step.
_BEDROCK_LEAST = 1


@dataclass(frozen=True)
class Service:
    """A vendor's model. `most` is the maximum of tokens of a reply.

    `image_tokens` is the number of tokens of a picture of 1,024 by 1,024 pixels, by the vendor's formula.
    """

    model: str
    most: int
    image_tokens: int
    limit: str = "max_tokens"
    usual: dict[str, Any] = field(default_factory=dict)
    thinking: dict[str, Any] = field(default_factory=dict)


_CLAUDE: dict[str, Any] = {
    "usual": {"max_tokens": 16_000},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 8_000}},
}
_GOOGLE: dict[str, Any] = {"limit": "max_output_tokens", "thinking": {"thinkingConfig": {"thinkingBudget": 8_000}}}
_SERVICES = {
    "openai": Service("openai/gpt-4o", 16_384, 765),
    "anthropic": Service("anthropic/claude-haiku-4-5", 64_000, 1_398, **_CLAUDE),
    "bedrock": Service("bedrock/anthropic.claude-haiku-4-5-20251001-v1:0", 64_000, 1_398, **_CLAUDE),
    "vertex": Service("vertex/gemini-2.5-flash", 65_535, 1_032, **_GOOGLE),
    "gemini": Service("gemini/gemini-2.5-flash", 65_536, 1_032, **_GOOGLE),
}

Lengths = Callable[[int, random.Random], int]
"""Returns the reply's number of tokens for the row with this number. The caller cuts it off at the maximum."""


def _heavy(_: int, draw: random.Random) -> int:
    return int(draw.paretovariate(1.2) * 150)


@dataclass(frozen=True)
class Case:
    """Rows of one kind.

    `times` is the limit, as a multiple of the actual cost of all rows. `most` is the maximum of tokens of a reply in
    params.
    """

    name: str
    text: Callable[[int, random.Random], str]
    most: int | None = None
    lengths: Lengths = _heavy
    times: float = 2.0
    changes: dict[str, Any] = field(default_factory=dict)
    images: bool = False
    thinks: bool = False
    reply: Callable[[int], str] = lambda _: "word"


def _english(_: int, draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=60))


def _cases(rows: int) -> list[Case]:
    free: dict[str, Any] = {"response": None}
    fallback = {
        "resend": Resend(max_waves=2, invalid_waves=2, fallback=[Fallback("openai/gpt-4.1", {"max_tokens": 2_000})]),
        "response": _LABELS,
    }

    def labels(_: int, draw: random.Random) -> int:
        return draw.randrange(8, 40)

    return [
        Case("English, labels", _english, 40, labels, 2.0, {"response": _LABELS}, reply=lambda _: _GOOD),
        Case("Chinese", lambda _, d: "".join(d.choices(_HAN, k=200)), None, _heavy, 2.0, free),
        Case("Python", lambda n, d: f"def f{n}(x):\n    return x + {d.random()}\n" * 9, None, _heavy, 2.0, free),
        Case(
            "CSV with ids",
            lambda _, d: "\n".join(f"{d.getrandbits(64):016x},2026-01-02,9" for _ in range(20)),
            None,
            _heavy,
            2.0,
            free,
        ),
        Case("base64", lambda _, d: base64.b64encode(d.randbytes(600)).decode(), None, _heavy, 2.0, free),
        Case("images", _english, 40, labels, 1.3, {"response": _LABELS}, images=True, reply=lambda _: _GOOD),
        Case("thinking", _english, 20_000, _heavy, 3.0, free, thinks=True),
        Case("free text", _english, None, _heavy, 5.0, free),
        Case("retries and a fallback", _english, 2_000, _heavy, 4.0, fallback, reply=lambda n: _GOOD if n % 5 else "?"),
        Case("cheap rows first", _english, None, lambda n, _: 50 if n < 0.75 * rows else 20_000, 0.5, free),
        Case("all as long as can be", _english, 2_000, lambda *_: 2_000, 0.5, free),
    ]


_HEAD = (
    "| Vendor | Rows | Limit, of all | Kind | Limit, USD | Billed, USD | Steps | Let through |\n"
    "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |"
)


def _lines(case: Case, name: str, rows: int, files: dict[str, str]) -> Iterator[str]:
    service = _SERVICES[name]
    params = service.usual if case.most is None else {service.limit: case.most}
    params = {**params, **(service.thinking if case.thinks else {})}
    most = min(service.most, params.get(service.limit, service.most))
    draw = random.Random(case.name)
    lengths = [min(most, case.lengths(number, draw)) for number in range(rows)]
    columns: dict[str, list[Any]] = {
        "key": [str(n) for n in range(rows)],
        "text": [f"#{n}# {case.text(n, draw)}" for n in range(rows)],
    }
    if case.images:
        columns["picture"] = [_PICTURE] * rows
    table = pa.table(columns)

    def answer(body: Any, _url: str) -> Reply:
        number = int(str(body).split("#")[1])
        given = service.image_tokens + 90 if case.images else None
        thought = min(8_000, lengths[number] // 2) if case.thinks else 0
        text, tokens = case.reply(number), lengths[number]
        return Reply(text=text, input_tokens=given, output_tokens=tokens, reasoning_tokens=thought)

    def definition(**changes: Any) -> Labeling:
        prompt = Prompt(user="{{ text }}", images=["picture"] if case.images else [])
        return Labeling(
            asset="rows", model=service.model, key="key", prompt=prompt, params=params, **case.changes, **changes
        )

    unlimited, *_ = _run(definition(), table, answer, files)
    limit = (unlimited * Decimal(case.times)).quantize(Decimal("0.0001"))
    for kind in KINDS:
        spend = Spend(limit=kind, expected_output_tokens=10)
        try:
            billed, steps, through = _run(definition(max_cost_usd=limit, spend=spend), table, answer, files)
        except BudgetError:
            yield f"| {name} | {case.name} | {case.times:g} | {kind} | {limit} | refused | 0 | 0 % |"
            continue
        verdict = "" if billed <= limit else " **exceeded**"
        what = f"| {name} | {case.name} | {case.times:g} | {kind} | {limit}"
        yield f"{what} | {billed:.4f}{verdict} | {steps} | {through:.0%} |"


def _providers(emulator: Emulator, files: dict[str, str]) -> dict[str, Any]:
    return {
        "openai": OpenAIProvider(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url),
        "anthropic": AnthropicProvider(api_key=DEFAULT_KEY, base_url=emulator.anthropic_base_url),
        "bedrock": BedrockProvider(
            "us-east-1",
            "arn:aws:iam::123456789012:role/batch",
            f"s3://{_BUCKET}/llm",
            session_options={"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x"},
            endpoint_url=emulator.bedrock_url,
            s3_endpoint_url=files["s3_url"],
            read_quotas=False,
            min_requests=_BEDROCK_LEAST,
        ),
        "vertex": VertexProvider(
            "p",
            "us-central1",
            _BUCKET,
            credentials=Credentials(token=DEFAULT_KEY),
            base_url=emulator.vertex_base_url,
            storage_url=files["gcs_url"],
        ),
        "gemini": GeminiProvider(DEFAULT_KEY, emulator.gemini_base_url),
    }


def _run(labeling: Labeling, table: pa.Table, answer: Any, files: dict[str, str]) -> tuple[Decimal, int, float]:
    """Return the billed amount, the number of steps, and the share of requests that were sent in wave 1."""
    skipped, vendor = timedelta(), VendorLimits(bedrock_min_records=_BEDROCK_LEAST)
    with (
        tempfile.TemporaryDirectory() as folder,
        Emulator(answer=answer, limits=vendor, s3_url=files["s3_url"], gcs_url=files["gcs_url"]) as emulator,
    ):
        providers = _providers(emulator, files)

        def now() -> datetime:
            return datetime.now(UTC) + skipped

        ledger, payloads = Ledger(Path(folder) / "ledger.sqlite", clock=now), PayloadStore(folder)
        engine = Engine(Deployment(cast("Any", providers), ledger, payloads, "limits", clock=now, sleep=lambda _: None))
        submission = engine.plan(labeling, table)
        status, steps = engine.submit(labeling, submission.submission_id), 1
        while not status.is_settled:
            emulator.settle()
            skipped += timedelta(hours=1)
            before = len({shard.batch.batch_id for shard in status.shards if shard.batch.batch_id})
            status = engine.advance(labeling, submission.submission_id)
            steps += len({shard.batch.batch_id for shard in status.shards if shard.batch.batch_id}) > before
    billed = sum((shard.bill.cost_usd or Decimal(0) for shard in status.shards), Decimal(0))
    sent = count_requests(shard for shard in status.shards if shard.batch.batch_id and shard.wave == 1)
    return billed, steps, sent / table.num_rows


# the rule alone -------------------------------------------------------------------------------------------------------

Costs = npt.NDArray[np.float64]

_DRAWN: dict[str, Callable[[np.random.Generator, int], Costs]] = {
    "all alike": lambda draw, n: np.full(n, 0.02) * draw.uniform(0.9, 1.1, n),
    "heavy tail": lambda draw, n: np.minimum(draw.pareto(1.1, n) * 0.01, 1.0),
    "one in 100 at the maximum": lambda draw, n: np.where(draw.random(n) < 0.01, 1.0, 0.01),
    "one in 1,000 at the maximum": lambda draw, n: np.where(draw.random(n) < 0.001, 1.0, 0.005),
    "half at the maximum": lambda draw, n: np.where(draw.random(n) < 0.5, 1.0, 0.0),
    "25 at the maximum, the rest free": lambda _, n: np.concatenate([np.ones(25), np.zeros(n - 25)]),
}


def _drawn_lines(draws: int, rows: int = 2_000) -> Iterator[str]:
    """Yield lines with the frequency of exceeded limits. Limits are 10, 20 or 50 % below the cost of all rows."""
    draw = np.random.default_rng(1)
    for name, make in _DRAWN.items():
        for share in (0.9, 0.8, 0.5):
            exceeded, through = 0, 0.0
            for _ in range(draws):
                costs = draw.permutation(make(draw, rows))
                limit = share * float(costs.sum())
                sent = _released(costs, limit)
                exceeded += float(costs[:sent].sum()) > limit
                through += sent / rows
            yield f"| {name} | {share:g} | {draws:,} | {exceeded} | {through / draws:.0%} |"


def _released(costs: Costs, limit: float) -> int:
    """Return the number of requests sent in the end, if each step is billed before the next."""
    sent = 0
    while sent < len(costs):
        more = int(limit - costs[:sent].sum())
        more = max(more, count_releasable(costs[:sent], len(costs), limit, 1.0) - sent)
        more = min(more, len(costs) - sent)
        if is_too_few(more, len(costs) - sent):
            break
        sent += more
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description="See the module's docstring.")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--draws", type=int, default=2_000)
    parser.add_argument("--services", default=",".join(_SERVICES), help="names of vendors, with commas")
    options = parser.parse_args()
    print(_HEAD)
    with ExitStack() as servers:
        servers_of = {"s3_url": local_s3, "gcs_url": local_gcs}
        files = {name: servers.enter_context(start(_BUCKET)) for name, start in servers_of.items()}
        for service in options.services.split(","):
            for case in _cases(options.rows):
                for line in _lines(case, service, options.rows, files):
                    print(line, flush=True)
    print("\n| Costs | Limit, of all | Draws | Exceeded | Let through |\n| --- | ---: | ---: | ---: | ---: |")
    for line in _drawn_lines(options.draws):
        print(line, flush=True)


if __name__ == "__main__":
    main()
