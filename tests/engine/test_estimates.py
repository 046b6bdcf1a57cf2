"""Estimates of a plan against the bill: the expected cost, the 95th percentile, and the maximum.

The limits once admitted work with a bill of 4 to 10 times the limit. A reply without a stated length counted as 256
tokens, an image as 1,000, and a nested maximum was not found.
"""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from bedrock_workspace import provider as bedrock_provider
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Fallback, Labeling, Limits, Realtime, Resend, Spend
from dagster_llm_batch.errors import BudgetError
from dagster_llm_batch.files.request_files import halve, split_requests
from dagster_llm_batch.loop.deployment import _openai_tokenizer
from dagster_llm_batch.loop.preview import Preview
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, PromptCache, Reply

GOOD = '{"topic": "bug", "urgency": 3}'
# The start of a PNG file of 1,024 by 1,024 pixels.
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1_024).to_bytes(4, "big") * 2


def preview_and_bill(tmp_path: Any, reply: Reply, definition: Labeling, rows: Any) -> tuple[Preview, Decimal]:
    """Return the preview, and the cost of the rows with this reply."""
    with Emulator(answer=lambda *_: reply) as emulator:
        workspace = Workspace(tmp_path, emulator)
        preview = workspace.engine().preview(definition, rows)
        cost = workspace.run(definition, rows).submission.cost_usd
    assert cost is not None
    return preview, cost


def assert_refused(tmp_path: Any, definition: Labeling, rows: Any) -> None:
    with Emulator() as emulator:
        workspace = Workspace(tmp_path / "limited", emulator)
        (tmp_path / "limited").mkdir()
        with pytest.raises(BudgetError, match="exceeds max_cost_usd"):
            workspace.engine().plan(definition, rows)
        assert not emulator.books.batches


def in_order(preview: Preview) -> bool:
    assert preview.estimated_usd is not None
    assert preview.p95_usd is not None
    assert preview.bound_usd is not None
    return preview.estimated_usd <= preview.p95_usd <= preview.bound_usd


def test_what_a_model_thinks_is_expected(tmp_path: Any) -> None:
    changes: dict[str, Any] = {"model": "openai/gpt-5-nano", "params": {}}
    thought = Reply(text=GOOD, output_tokens=1_300, reasoning_tokens=1_280)
    preview, cost = preview_and_bill(tmp_path, thought, labeling(**changes), tickets(20))
    assert in_order(preview)
    assert cost * Decimal("0.7") < (preview.estimated_usd or 0) < cost * Decimal("1.3")
    assert cost < (preview.p95_usd or 0)
    assert preview.output_bound == 20 * 128_000
    limit = cost * Decimal("0.03") / Decimal("0.1036")
    assert_refused(tmp_path, labeling(**changes, max_cost_usd=limit), tickets(20))


def test_a_text_of_any_length_is_bounded_by_the_models_maximum(tmp_path: Any) -> None:
    changes: dict[str, Any] = {"params": {}, "response": None}
    long = Reply(text="word " * 1_500, output_tokens=1_500)
    preview, cost = preview_and_bill(tmp_path, long, labeling(**changes), tickets(20))
    assert in_order(preview)
    assert cost < (preview.p95_usd or 0)
    assert preview.output_bound == 20 * 16_384
    longest = Reply(text="word", output_tokens=16_384)
    (tmp_path / "longest").mkdir()
    _, most = preview_and_bill(tmp_path / "longest", longest, labeling(**changes), tickets(20))
    assert (preview.p95_usd or 0) < most <= (preview.bound_usd or 0)
    limit = cost * Decimal("0.70") / Decimal("4.04")
    assert_refused(tmp_path, labeling(**changes, max_cost_usd=limit), tickets(20))


def test_an_image_counts_by_its_size_and_its_model(tmp_path: Any) -> None:
    prompt = Prompt(user="{{ subject }}", images=["picture"])
    changes: dict[str, Any] = {"model": "openai/gpt-4o-mini", "prompt": prompt}
    rows = tickets(10).with_columns(picture=pl.lit(PICTURE))
    tokens = 2_833 + 4 * 5_667
    preview, cost = preview_and_bill(tmp_path, Reply(text=GOOD, input_tokens=tokens + 60), labeling(**changes), rows)
    assert in_order(preview)
    assert 10 * tokens < preview.input_tokens < 11 * tokens
    assert cost <= (preview.bound_usd or 0)
    assert_refused(tmp_path, labeling(**changes, max_cost_usd=cost * Decimal("0.02") / Decimal("0.193")), rows)


@pytest.mark.parametrize("params", [{"max_tokens": 700}, {"inferenceConfig": {"maxTokens": 700}}])
def test_bedrocks_maximum_is_seen_where_its_body_has_it(workspace: Workspace, params: dict[str, Any]) -> None:
    workspace.providers["bedrock"] = bedrock_provider("http://127.0.0.1:9", "http://127.0.0.1:9")
    definition = labeling(model="bedrock/us.amazon.nova-lite-v1:0", params=params, response=None)
    preview = workspace.engine().preview(definition, tickets(5))
    assert (preview.output_tokens, preview.output_bound) == (5 * 700, 5 * 700)
    assert in_order(preview)


def test_a_fallback_has_its_own_bound(workspace: Workspace) -> None:
    fallback = Fallback("openai/gpt-4.1", params={"max_tokens": 900})
    definition = labeling(resend=Resend(fallback=[fallback]))
    estimates = [workspace.engine().deployment.estimate(each) for each in definition.models]
    assert [estimate.output.bound for estimate in estimates] == [50, 900]


@pytest.mark.parametrize(
    ("text", "tokens", "by_bytes"),
    [
        (
            "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e, \u092f\u0939 \u090f\u0915 ",
            7,
            3.6,
        ),
        ("\u4f60\u597d\uff0c\u8bf7\u95ee\u6211\u7684\u8ba2\u5355\u4ec0\u4e48\u65f6\u5019\u5230\uff1f", 8, 2.2),
    ],
    ids=["Hindi", "Chinese"],
)
def test_rows_of_any_script_are_estimated_and_bounded(
    workspace: Workspace, text: str, tokens: int, by_bytes: float
) -> None:
    """`tokens` is the count by o200k_base. A quarter of the line's bytes, used before, was `by_bytes` times as much."""
    rows = pl.DataFrame([{"ticket_id": str(n), "subject": f"{n}", "body": text * 60} for n in range(30)])
    preview = workspace.engine().preview(labeling(prompt=Prompt(user="{{ body }} {{ subject }}")), rows)
    real = 30 * 60 * tokens
    assert preview.bytes / 4 > 0.9 * by_bytes * real
    # The estimate includes the frame of a text, and its schema.
    assert 0.7 * real < preview.input_tokens < 1.55 * real
    assert preview.input_bound is not None
    assert preview.input_bound >= 30 * 60 * len(text.encode())


def test_padding_and_real_time_are_in_all_three_numbers(workspace: Workspace) -> None:
    plain = workspace.engine().preview(labeling(), tickets(4))
    urgent = tickets(4).with_columns(is_urgent=pl.lit(value=True))
    realtime = workspace.engine().preview(labeling(realtime=Realtime(urgent="is_urgent")), urgent)
    workspace.providers["bedrock"] = bedrock_provider("http://127.0.0.1:9", "http://127.0.0.1:9", min_requests=8)
    batch = {"model": "bedrock/us.amazon.nova-lite-v1:0", "response": None}
    alone = workspace.engine().preview(labeling(**batch), tickets(4))
    padded = workspace.engine().preview(labeling(**batch, limits=Limits(below_minimum="pad")), tickets(4))
    for one, twice in ((plain, realtime), (alone, padded)):
        assert in_order(twice)
        for name in ("estimated_usd", "p95_usd", "bound_usd"):
            assert getattr(twice, name) == pytest.approx(2 * getattr(one, name), rel=Decimal("0.02")), name


def test_what_nobody_knows_is_said(workspace: Workspace) -> None:
    searching = labeling(params={"max_tokens": 50, "tools": [{"type": "web_search"}]})
    preview = workspace.engine().preview(searching, tickets(2))
    assert (preview.input_bound, preview.bound_usd) == (None, None)
    assert preview.estimated_usd is not None
    assert preview.p95_usd is not None
    unpriced = workspace.engine().preview(labeling(model="openai/no-such-llm"), tickets(2))
    assert (unpriced.estimated_usd, unpriced.p95_usd, unpriced.bound_usd) == (None, None, None)


def test_what_the_user_expects_is_the_estimate_and_no_bound(workspace: Workspace) -> None:
    preview = workspace.engine().preview(labeling(spend=Spend(expected_output_tokens=10)), tickets(2))
    assert (preview.output_tokens, preview.output_bound) == (20, 100)
    assert in_order(preview)


def test_each_batch_has_its_own_bound(workspace: Workspace) -> None:
    rows = tickets(10).with_columns(body=pl.Series(["word " * 40 * n for n in range(10)]))
    engine = workspace.engine()
    submission = engine.plan(labeling(limits=Limits(max_requests_per_batch=4)), rows)
    shards = engine.ledger.shards.of_submission(submission.submission_id)
    bounds = [shard.bill.bound_usd or Decimal(0) for shard in shards]
    assert len(bounds) == 3
    assert sum(bounds) == submission.bound_usd
    assert bounds[0] < bounds[1]
    # A shard is bounded by its longest request, times at most the number of its requests.
    estimate = engine.deployment.estimate(labeling())
    for shard in shards:
        dearest = estimate.most_usd(shard.input_bound) or Decimal(0)
        assert dearest < (shard.bill.bound_usd or 0) <= shard.requests * dearest
        halves = split_requests(engine.payloads, shard, 9, halve(shard, 1), dearest)
        whole, bounds = shard.bill.bound_usd or 0, [half.bill.bound_usd for half in halves]
        assert sum(bound or 0 for bound in bounds) >= whole
        assert all(bound is not None and bound <= whole for bound in bounds)


def test_what_is_moved_between_batches_keeps_a_bound(workspace: Workspace) -> None:
    rows = tickets(10).with_columns(body=pl.Series(["word " * 40 * n for n in range(10)]))
    batch = {"model": "bedrock/us.amazon.nova-lite-v1:0", "response": None, "limits": Limits(max_requests_per_batch=8)}
    planned = []
    for least in (1, 4):
        provider = bedrock_provider("http://127.0.0.1:9", "http://127.0.0.1:9", min_requests=least)
        workspace.providers["bedrock"] = provider
        engine = workspace.engine()
        submission = engine.plan(labeling(**batch), rows, partition=str(least))
        planned.append(engine.ledger.shards.of_submission(submission.submission_id))
    before, after = planned
    assert [shard.requests for shard in after] == [6, 4]
    assert sum(shard.bill.bound_usd or 0 for shard in after) >= sum(shard.bill.bound_usd or 0 for shard in before)
    # Those that moved are the longest of the first.
    moved = (after[1].bill.bound_usd or 0) - (before[1].bill.bound_usd or 0)
    assert moved > 2 * (before[0].bill.bound_usd or 0) / 8


def test_what_is_sent_again_is_bounded_as_the_longest(tmp_path: Any) -> None:
    # So few rows do not trip the circuit breaker, which stops a wave without valid replies.
    rows = tickets(8).with_columns(body=pl.Series(["word " * 40 * n for n in range(8)]))
    with Emulator(answer=lambda *_: Reply(text="no JSON")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        submission = workspace.run(labeling(resend=Resend(invalid_waves=2)), rows).submission
    first, second = workspace.engine().ledger.shards.of_submission(submission.submission_id)
    assert (second.wave, second.requests, second.input_bound) == (2, 8, first.input_bound)
    assert (second.bill.bound_usd or 0) >= (first.bill.bound_usd or 0) > 0


@pytest.mark.slow
def test_an_estimate_learns_from_the_partitions_before(tmp_path: Any) -> None:
    """Answer with replies far shorter than their maximum; some are invalid and are asked again."""
    draw, length = random.Random(4), 60

    def answer(*_: Any) -> Reply:
        fits = draw.random() > 0.1
        return Reply(
            text=GOOD if fits else "no JSON", input_tokens=130, output_tokens=round(length * draw.uniform(0.5, 1.5))
        )

    definition = labeling(params={"max_tokens": 1_000}, resend=Resend(invalid_waves=2))
    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        told: list[tuple[Preview, Decimal]] = []
        for day in range(8):
            length = 60 if day < 5 else 120
            rows = tickets(60, start=60 * day)
            preview = workspace.engine().preview(definition, rows, partition=str(day))
            submission = workspace.run(definition, rows, partition=str(day)).submission
            assert submission.cost_usd is not None
            assert (submission.estimated_usd, submission.p05_usd) == (preview.estimated_usd, preview.p05_usd)
            assert submission.learned_from == (day or None)
            told.append((preview, submission.cost_usd))
        learned = workspace.engine().deployment.learned(definition)
        other = workspace.engine().preview(
            replace(definition, prompt=Prompt(user="{{ body }}")), tickets(9), partition="9"
        )
    ratios = [float((preview.estimated_usd or 0) / cost) for preview, cost in told]
    # The first estimate uses the maximum, and replies are far below it.
    assert ratios[0] > 5
    assert all(0.8 < ratio < 1.25 for ratio in ratios[1:5]), ratios
    # Replies are twice as long from one day to the next: half of that is expected two days later.
    assert ratios[5] < 0.7
    assert ratios[5] < ratios[6] < ratios[7]
    assert ratios[7] > 0.8
    assert [preview.p05_usd is None for preview, _ in told[:4]] == [True, True, True, False]
    assert all((preview.p05_usd or 0) <= cost <= (preview.p95_usd or 0) for preview, cost in told[3:5])
    assert learned is not None
    # One in ten asked again.
    assert 1.02 < learned.times < 1.2
    assert learned.judged == 5
    # The vendor counted more than was estimated.
    assert learned.input_ratio > 1.3
    assert told[4][0].input_tokens == pytest.approx(60 * 130, rel=0.02)
    bounds = [preview.bound_usd or 0 for preview, _ in told]
    assert max(bounds) < min(bounds) * Decimal("1.05")
    # Another prompt: its replies are not known.
    assert other.learned is not None
    assert other.learned.complete is None
    assert other.output_tokens == 9 * 1_000


def test_a_tokenizer_that_would_have_to_be_downloaded_is_not_used(
    workspace: Workspace, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check with a missing tokenizer file and with a different one, whether tiktoken is installed or not."""
    (tmp_path / "tiktoken.py").write_text("raise AssertionError('imported, which looks for the file in the network')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    deployment = workspace.engine().deployment
    _openai_tokenizer.cache_clear()
    assert deployment.tokenizer(labeling()) is None
    (tmp_path / "fb374d419588a4632f3f557e76b4b70aebbca790").write_bytes(b"IQ== 0\n")
    _openai_tokenizer.cache_clear()
    assert deployment.tokenizer(labeling()) is None
    assert workspace.engine().preview(labeling(), tickets(2)).learned is None


def test_of_what_was_canceled_halfway_nothing_is_learned(tmp_path: Any) -> None:
    """Cancel at half of the cost: the next submission would be expected to cost half, too."""
    with Emulator(work_steps=2) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine, definition = workspace.engine(), labeling()
        submission_id = engine.plan(definition, tickets(60)).submission_id
        engine.submit(definition, submission_id)
        emulator.tick(2)
        engine.cancel(submission_id)
        canceled = workspace.finish(definition, submission_id).submission
        assert (canceled.outcomes["succeeded"], canceled.billed) == (30, None)
        assert engine.deployment.learned(definition) is None
        whole = workspace.run(definition, tickets(60, start=100), partition="2").submission
    assert whole.billed is not None
    assert (whole.billed["requests"], whole.billed["replies"], whole.billed["times"]) == (60, 60, 1.0)
    assert workspace.engine().deployment.learned(definition) is not None


def test_what_a_cached_prefix_saves_is_learned(tmp_path: Any) -> None:
    """Check costs as well: tokens alone do not show that nine tenths of the input cost a tenth."""
    rules = "Rules for labels, the same for every row. " * 200
    prompt = Prompt(system=rules, user="{{ body }}", cache_prefix=True)
    definition = labeling(model="anthropic/claude-sonnet-4-5", prompt=prompt, response=None)
    with Emulator(answer=PromptCache()) as emulator:
        workspace = Workspace(tmp_path, emulator)
        workspace.providers["anthropic"] = AnthropicProvider(DEFAULT_KEY, emulator.anthropic_base_url)
        ratios = []
        for day in range(4):
            rows = tickets(50, start=50 * day)
            submission = workspace.run(definition, rows, partition=str(day)).submission
            ratios.append(float((submission.estimated_usd or 0) / (submission.cost_usd or 1)))
        learned = workspace.engine().deployment.learned(definition)
    assert ratios[0] > 3
    # Only on the first day the prefix had to be written, which costs as much as twelve reads of it.
    assert 1.1 > ratios[3] > 0.95
    assert learned is not None
    assert learned.times < 0.5
