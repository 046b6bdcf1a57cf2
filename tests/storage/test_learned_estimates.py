"""Estimates that learn from the ledger, on both: simulated submissions, seeded, with known bills."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_builders import a_submission

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.engine import Deployment, Labeling
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

LABELING = Labeling(
    asset="tickets", model="openai/gpt-4o", key="id", prompt=Prompt(user="{{ text }}"), params={"max_tokens": 400}
)
ROWS, TOKENS = 300, 120


class Site:
    """A deployment whose submissions are opened and settled with made-up bills."""

    def __init__(self, url: str, tmp_path: Path, clock: Any) -> None:
        self.ledger, self.clock = Ledger(url, clock=clock), clock
        provider = OpenAIProvider("key", "http://127.0.0.1:9")
        self.deployment = Deployment(
            {"openai": provider}, self.ledger, PayloadStore(str(tmp_path / "payloads")), "prod", clock=clock
        )
        self.rng, self.count = np.random.default_rng(5), 0

    def settle(self, labeling: Labeling, output_tokens: float, times: float = 1.0, **changes: Any) -> tuple[Any, Any]:
        """Settle a submission with `output_tokens` for each reply on average; return its estimate and cost."""
        deployment = self.deployment
        estimate = deployment.estimate(labeling, learned=deployment.learned(labeling))
        estimate.add(InputCounts([TOKENS] * ROWS, [600] * ROWS))
        each = deployment.tariff(labeling).mean_usd(1.2 * TOKENS, output_tokens)
        assert each is not None
        self.count += 1
        self.clock.pass_seconds(3_600)
        submission = a_submission(
            f"s{self.count}",
            partition=f"day {self.count}",
            config_fingerprint=deployment.configuration(labeling),
            model=labeling.spec.model,
            requests=ROWS,
            estimated_usd=estimate.cost_usd,
            p05_usd=estimate.p05_usd,
            p95_usd=estimate.p95_usd,
            bound_usd=estimate.bound_usd,
            created_at=self.clock.now,
        )
        submission = self.ledger.submissions.open(replace(submission, **changes), [])
        billed = {
            "prompt": labeling.prompt_version,
            "requests": ROWS,
            "tokens": ROWS * TOKENS,
            "replies": ROWS,
            "input_tokens": round(1.2 * ROWS * TOKENS),
            "output_tokens": round(ROWS * output_tokens),
            "times": times,
        }
        cost = ROWS * each * Decimal(str(times))
        self.ledger.submissions.settle(
            submission.submission_id, outcomes={}, cost_usd=cost, realtime_usd=None, price_basis=None, billed=billed
        )
        return estimate, cost


@pytest.fixture
def site(ledger_url: str, tmp_path: Path, clock: Any) -> Any:
    site = Site(ledger_url, tmp_path, clock)
    yield site
    site.ledger.close()


def test_nine_in_ten_cost_what_was_told_also_when_replies_become_longer(site: Site) -> None:
    """Check also that the share that the ledger reports is the true one."""
    told, off = [], []
    for number in range(110):
        level = 60.0 if number < 70 else 90.0
        output = level * np.exp(site.rng.normal(0, 0.12))
        estimate, cost = site.settle(LABELING, output, times=round(1 + 0.1 * site.rng.random(), 4))
        assert cost <= estimate.bound_usd
        if estimate.p05_usd is not None:
            told.append(estimate.p05_usd <= cost <= estimate.p95_usd)
        if 20 <= number < 70 or number >= 80:
            mean = ROWS * (site.deployment.tariff(LABELING).mean_usd(1.2 * TOKENS, level) or 0) * Decimal("1.05")
            off.append(abs(float(estimate.cost_usd / mean) - 1))
    assert len(told) == 107
    assert 0.85 <= sum(told) / len(told) <= 0.95
    assert np.quantile(off, 0.9) < 0.1
    learned = site.deployment.learned(LABELING)
    assert learned is not None
    assert (learned.submissions, learned.judged, learned.held) == (80, 80, sum(told[-80:]))


def test_only_the_same_of_the_same_dataset_is_learned_from(site: Site) -> None:
    other_prompt = replace(LABELING, prompt=Prompt(user="Say much of {{ text }}"))
    other_maximum = replace(LABELING, params={"max_tokens": 4_000})
    other_model = replace(LABELING, model="openai/gpt-4o-mini")
    for _ in range(4):
        site.settle(LABELING, 50)
        site.settle(other_prompt, 300)
        site.settle(other_maximum, 3_000)
        site.settle(other_model, 1)
        site.settle(LABELING, 7, asset="others")
        site.settle(LABELING, 8, namespace="branch")
    learned = {
        name: site.deployment.learned(labeling)
        for name, labeling in {"own": LABELING, "prompt": other_prompt, "model": other_model}.items()
    }
    assert {name: each and (each.complete, each.output_tokens) for name, each in learned.items()} == {
        "own": (4, pytest.approx(50, rel=0.01)),
        "prompt": (4, pytest.approx(300, rel=0.01)),
        "model": (4, pytest.approx(1, rel=0.01)),
    }
    # A new prompt: rows of the same dataset have as many input tokens, but the length of the replies is unknown.
    new = site.deployment.learned(replace(LABELING, prompt=Prompt(user="Anew: {{ text }}")))
    assert new is not None
    assert (new.complete, new.output_tokens, new.input_ratio) == (None, None, pytest.approx(1.2, rel=0.01))
    assert site.deployment.learned(replace(LABELING, asset="unheard of")) is None


def test_the_bound_never_learns(site: Site) -> None:
    before, _ = site.settle(LABELING, 400)
    for _ in range(5):
        site.settle(LABELING, 3)
    after, _ = site.settle(LABELING, 3)
    assert after.bound_usd == before.bound_usd
    assert after.cost_usd < before.cost_usd / 2
