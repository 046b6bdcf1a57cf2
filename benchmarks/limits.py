"""Whether limits of money are kept, and what they cost in time. Simulated replies; prices of the bundled price book.

    python -m benchmarks.limits [--rows 300] [--draws 2000]

1. Rows of several kinds through OpenAI's and Anthropic's emulators: what was billed of the limit, in how many steps,
   and which share of the rows was let through. Lengths of replies go up to the documented maximum.
2. The rule alone, on costs that are drawn: how often what is billed exceeds a measured limit that all rows together
   would exceed.
"""

from __future__ import annotations

import argparse
import base64
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.releases import LimitKind, count_releasable, is_too_few
from dagster_llm_batch.engine import Deployment, Engine, Fallback, Labeling, Resend, Spend
from dagster_llm_batch.errors import BudgetError
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply

KINDS: tuple[LimitKind, ...] = ("hard", "measured")
_WORDS = "where is my invoice of last month it was never sent to me please look again thank you".split()
_HAN = "你好请问我的订单什么时候可以送到谢谢您的帮助我们已经等了很久"
_PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1_024).to_bytes(4, "big") * 2
_LABELS = {"type": "object", "properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]}
_GOOD = '{"topic": "bug"}'

Lengths = Callable[[int, random.Random], int]
"""Returns how many tokens the reply to the row of this number has, of a maximum that is cut off elsewhere."""


def _heavy(_: int, draw: random.Random) -> int:
    return int(draw.paretovariate(1.2) * 150)


@dataclass(frozen=True)
class Case:
    """Rows of one kind. `times`: the limit, as a multiple of what all rows do cost."""

    name: str
    text: Callable[[int, random.Random], str]
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    lengths: Lengths = _heavy
    times: float = 2.0
    changes: dict[str, Any] = field(default_factory=dict)
    images: bool = False
    reply: Callable[[int], str] = lambda _: "word"


def _english(_: int, draw: random.Random) -> str:
    return " ".join(draw.choices(_WORDS, k=60))


def _cases() -> list[Case]:
    free: dict[str, Any] = {"response": None}
    short = {service: {"max_tokens": 40} for service in ("openai", "anthropic")}
    thinking = {
        "openai": {"max_completion_tokens": 20_000},
        "anthropic": {"max_tokens": 20_000, "thinking": {"type": "enabled", "budget_tokens": 8_000}},
    }
    fallback = {
        "resend": Resend(max_waves=2, invalid_waves=2, fallback=[Fallback("openai/gpt-4.1", {"max_tokens": 2_000})]),
        "response": _LABELS,
    }
    some = {service: {"max_tokens": 2_000} for service in short}

    def labels(_: int, draw: random.Random) -> int:
        return draw.randrange(8, 40)

    return [
        Case("English, labels", _english, short, labels, 2.0, {"response": _LABELS}, reply=lambda _: _GOOD),
        Case("Chinese", lambda _, d: "".join(d.choices(_HAN, k=200)), {}, _heavy, 2.0, free),
        Case("Python", lambda n, d: f"def f{n}(x):\n    return x + {d.random()}\n" * 9, {}, _heavy, 2.0, free),
        Case(
            "CSV with ids",
            lambda _, d: "\n".join(f"{d.getrandbits(64):016x},2026-01-02,9" for _ in range(20)),
            {},
            _heavy,
            2.0,
            free,
        ),
        Case("base64", lambda _, d: base64.b64encode(d.randbytes(600)).decode(), {}, _heavy, 2.0, free),
        Case("images", _english, short, labels, 1.3, {"response": _LABELS}, images=True, reply=lambda _: _GOOD),
        Case("thinking", _english, thinking, _heavy, 3.0, free),
        Case("free text", _english, {}, _heavy, 5.0, free),
        Case("retries and a fallback", _english, some, _heavy, 4.0, fallback, reply=lambda n: _GOOD if n % 5 else "?"),
        Case("cheap rows first", _english, {}, lambda n, _: 50 if n < 200 else 20_000, 0.5, free),
        Case("all as long as can be", _english, some, lambda *_: 2_000, 0.5, free),
    ]


_MODELS = {"openai": ("openai/gpt-4o", 16_384), "anthropic": ("anthropic/claude-haiku-4-5", 64_000)}
# A picture of 1,024 by 1,024 pixels has so many by the vendors' formulas.
_IMAGE_TOKENS = {"openai": 765, "anthropic": 1_398}
_HEAD = (
    "| Vendor | Rows | Limit, of all | Kind | Limit, USD | Billed, USD | Steps | Let through |\n"
    "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |"
)


def _lines(case: Case, service: str, rows: int) -> Iterator[str]:
    model, most = _MODELS[service]
    params = case.params.get(service, {} if service == "openai" else {"max_tokens": 16_000})
    most = min([most, *(value for name, value in params.items() if name in ("max_tokens", "max_completion_tokens"))])
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
        given = _IMAGE_TOKENS[service] + 90 if case.images else None
        return Reply(text=case.reply(number), input_tokens=given, output_tokens=lengths[number])

    def definition(**changes: Any) -> Labeling:
        prompt = Prompt(user="{{ text }}", images=["picture"] if case.images else [])
        return Labeling(asset="rows", model=model, key="key", prompt=prompt, params=params, **case.changes, **changes)

    unlimited, *_ = _run(definition(), table, answer)
    limit = (unlimited * Decimal(case.times)).quantize(Decimal("0.0001"))
    for kind in KINDS:
        spend = Spend(limit=kind, expected_output_tokens=10)
        try:
            billed, steps, through = _run(definition(max_cost_usd=limit, spend=spend), table, answer)
        except BudgetError:
            yield f"| {service} | {case.name} | {case.times:g} | {kind} | {limit} | refused | 0 | 0 % |"
            continue
        verdict = "" if billed <= limit else " **exceeded**"
        what = f"| {service} | {case.name} | {case.times:g} | {kind} | {limit}"
        yield f"{what} | {billed:.4f}{verdict} | {steps} | {through:.0%} |"


def _run(labeling: Labeling, table: pa.Table, answer: Any) -> tuple[Decimal, int, float]:
    """Return what was billed, in how many steps, and the share of requests that were sent in the first wave."""
    skipped = timedelta()
    with tempfile.TemporaryDirectory() as folder, Emulator(answer=answer) as emulator:
        providers = {
            "openai": OpenAIProvider(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url),
            "anthropic": AnthropicProvider(api_key=DEFAULT_KEY, base_url=emulator.anthropic_base_url),
        }

        def now() -> datetime:
            return datetime.now(UTC) + skipped

        ledger, payloads = Ledger(Path(folder) / "ledger.sqlite", clock=now), PayloadStore(folder)
        engine = Engine(Deployment(cast("Any", providers), ledger, payloads, "limits", clock=now, sleep=lambda _: None))
        submission = engine.plan(labeling, table)
        status, steps = engine.submit(labeling, submission.submission_id), 1
        while not status.is_settled:
            emulator.settle()
            skipped += timedelta(hours=1)
            before = len({shard.batch_id for shard in status.shards if shard.batch_id})
            status = engine.advance(labeling, submission.submission_id)
            steps += len({shard.batch_id for shard in status.shards if shard.batch_id}) > before
    billed = sum((shard.cost_usd or Decimal(0) for shard in status.shards), Decimal(0))
    sent = sum(shard.requests for shard in status.shards if shard.batch_id and shard.wave == 1)
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
    """Yield how often limits are exceeded that are 10, 20 or 50 % below what all rows cost together."""
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
    """Return how many requests, of which all that is sent is billed before the next step, are sent in the end."""
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
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--draws", type=int, default=2_000)
    options = parser.parse_args()
    print(_HEAD)
    for service in _MODELS:
        for case in _cases():
            for line in _lines(case, service, options.rows):
                print(line, flush=True)
    print("\n| Costs | Limit, of all | Draws | Exceeded | Let through |\n| --- | ---: | ---: | ---: | ---: |")
    for line in _drawn_lines(options.draws):
        print(line, flush=True)


if __name__ == "__main__":
    main()
