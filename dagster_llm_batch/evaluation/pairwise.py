"""Have an LLM choose the better of two answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets import llm_batch_assets
from dagster_llm_batch.assets.keys import Upstream
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, PartitionOptions, picture
from dagster_llm_batch.evaluation.candidates import Candidates, candidates_of
from dagster_llm_batch.evaluation.judge import (
    MATERIAL,
    SAYS_ITSELF,
    Judge,
    instructed,
    judge_cost,
    response_schema,
    split_options,
)
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics.numeric import pairwise_cases
from dagster_llm_batch.metrics.pairwise import VERDICTS, Pairwise, compare_pairs, pairwise_markdown, pairwise_to_arrow
from dagster_llm_batch.metrics.pairwise_plots import pairwise_png
from dagster_llm_batch.text import plain_text

__all__ = ["CONSISTENCY", "pairwise_judge_assets", "pairwise_table"]

CONSISTENCY = "consistency"
"""Name of the check."""

_PAIRWISE_DOCS = {
    "a": "first candidate of the pair",
    "b": "second candidate of the pair",
    "n_rows": "rows that both answered",
    "n_identical": "rows with the same answer: ties, without a question to the judge",
    "n_unjudged": "rows without a verdict in one order or both; left out",
    "n_judged": "rows with a verdict in both orders",
    "n_a_wins": "a is better, in both orders",
    "n_b_wins": "b is better, in both orders",
    "n_ties": "neither is, in both orders",
    "n_inconsistent": "the verdict changes with the order; counted as a tie",
    "win_rate_a": "share of judged and identical rows that a wins, ties as half",
    "win_rate_a_low": "95 % interval, by the request",
    "win_rate_a_high": "95 % interval, by the request",
    "win_rate_a_interval": "method of the interval, or the reason why it is missing",
    "p_value": "probability that equally good candidates differ as much (sign test)",
    "inconsistent_rate": "n_inconsistent / n_judged",
    "first_rate": "share of verdicts for A or B that are for A, shown first; 0.5 without a preference",
    "first_rate_low": "95 % interval, by the request",
    "first_rate_high": "95 % interval, by the request",
    "first_rate_interval": "method of the interval, or the reason why it is missing",
    "n_both_first": "rows where the answer shown first wins in both orders",
    "n_both_second": "rows where the answer shown second wins in both orders",
    "position_p_value": "probability that a judge without preference makes these differ as much (sign test)",
}


def pairwise_table(
    cases: pa.Table,
    verdicts: pa.Table,
    candidates: Sequence[str],
    key: str,
    max_inconsistent: float | None,
    severity: dg.AssetCheckSeverity,
) -> Computed:
    """Return the table of pairs; `verdicts` holds rejects too, as rows without one."""
    pairs = compare_pairs(cases, verdicts, candidates, key=key)
    figures = {
        figure_key(name, f"{pair.a} vs {pair.b}"): value
        for pair in pairs
        for name in ("win_rate_a", "inconsistent_rate", "first_rate")
        if (value := getattr(pair, name)) is not None
    }
    outcomes = [] if max_inconsistent is None else [_consistency(pairs, max_inconsistent, severity)]
    text = pairwise_markdown(pairs)
    if any(pair.n_judged + pair.n_identical for pair in pairs):
        text += "\n\n" + picture("wins, ties and verdicts that change with the order", pairwise_png(pairs))
    shown = {"llm_batch/judgment": dg.MetadataValue.md(text), **figures, **judge_cost(verdicts)}
    return Computed(pairwise_to_arrow(pairs), shown, _PAIRWISE_DOCS, outcomes)


def _consistency(pairs: Sequence[Pairwise], largest: float, severity: dg.AssetCheckSeverity) -> CheckOutcome:
    rates = {
        f"{compared.a} and {compared.b}": compared.inconsistent_rate
        for compared in pairs
        if compared.inconsistent_rate is not None
    }
    lines = [f"{plain_text(pair)}: {rate:.1%}; required: at most {largest:.1%}" for pair, rate in rates.items()]
    return CheckOutcome(
        CONSISTENCY,
        passed=all(rate <= largest for rate in rates.values()),
        severity=severity,
        description=". ".join(lines) + "." if lines else "No row was judged.",
        metadata={},
    )


_PAIRWISE = (
    "You are shown two answers, A and B. Say which of them is better: A, B, or tie where neither is. The order in "
    f"which they are shown means nothing. {MATERIAL.format(what='verdict')}"
)


@checked_options(PartitionOptions, EvaluationBuilder, beside=llm_batch_assets, without=SAYS_ITSELF)
def pairwise_judge_assets(
    *,
    name: str,
    rows: Upstream,
    candidates: Candidates,
    key: str,
    target: str | Sequence[str],
    prompt: Prompt,
    model: str,
    sample_size: int | None = 100,
    max_inconsistent: float | None = None,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    **options: Any,
) -> list[dg.AssetsDefinition]:
    """Declare assets that judge which of two answers is better, for all pairs of candidates: each pair is asked in both
    orders.

    A win is a win in both orders; verdicts that change with the order are counted as inconsistent, and as a tie.
    `<name>` has one row for each pair of candidates: win rate with its interval, sign test, ties, inconsistent rows,
    and how often the answer shown first is preferred. Answers that are the same are not asked about. Needs the extra
    `evaluation` when it runs.

    Args:
        name: Name of the asset with the figures.
        rows: Asset with the rows that the candidates answered.
        candidates: Assets with their answers.
        key: Column that rows and candidates share; it names one row.
        target: Column, or columns, of the candidates with the answer. Several are shown as one JSON object.
        prompt: The judge's prompt. Its variables are `answer_a`, `answer_b` and columns of `rows`. Instructions for the
            form of the answer are added to its system part.
        model: The judge: the provider, a slash, and the provider's own name for the model, as in "openai/gpt-5-nano".
        sample_size: How many rows to judge, drawn by their keys, so that every run judges the same ones; of each
            partition, if there are any. None (in YAML null): all.
        max_inconsistent: Largest share of rows, of any pair, whose verdicts change with the order; as a check.
        check_severity: Severity of the check when it fails.
        blocking: Whether the failed check holds back downstream assets.
        partitions_def: Judge each partition separately; `rows` and candidates are read by Dagster's partition mappings.
            Default: all partitions are judged together.
        automation_condition: When to ask the judge without a person. "default": never, since it costs money; assets
            that cost nothing follow automatically. None (in YAML null): these do not follow either.
        pool: Concurrency pool of the ops of the cases, of the submission, and of the figures.
        op_tags: Tags of all ops, for executors that size a step by them.
        retry_policy: How often, and when, to retry the ops of the cases, of the submission and of the figures. A step
            that covers several partitions is not retried.
        frame, io_manager_key, backfill_policy: As for `evaluation_assets`.
        options: Dagster's other ones, as for `evaluation_assets`, and all else that `llm_batch_assets` takes: params,
            max_cost_usd, mode, …

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    if max_inconsistent is not None and not 0 <= max_inconsistent <= 1:
        raise ConfigError(f"max_inconsistent={max_inconsistent!r}: a share is between 0 and 1.")
    targets = (target,) if isinstance(target, str) else tuple(target)
    judged = candidates_of(candidates, {}, targets)
    if len(judged) < 2:  # noqa: PLR2004
        raise ConfigError(f"candidates is {judged[0].name} alone; a comparison needs two or more.")
    builder, llm_batch = split_options(name, options)
    builder.check_partitions(rows, candidates)
    judge = Judge(
        builder=builder,
        rows=rows,
        candidates=judged,
        join_key=key,
        targets=targets,
        prompt=instructed(prompt, _PAIRWISE, ("answer_a", "answer_b")),
        own_columns=("first", "second", "identical", "answer_a", "answer_b"),
        keep=("first", "second"),
        cases=pairwise_cases,
        sample_size=sample_size,
    )
    verdict = {"type": "string", "enum": list(VERDICTS), "description": "Which answer is better."}
    checks = []
    if max_inconsistent is not None:
        most = f"At most {max_inconsistent:.0%} of the verdicts change with the order of the answers."
        checks.append(builder.check(CONSISTENCY, most, blocking=blocking))

    def figures(cases: pa.Table, verdicts: pa.Table) -> Computed:
        names = [candidate.name for candidate in judged]
        return pairwise_table(cases, verdicts, names, key, max_inconsistent, check_severity)

    response = response_schema("Verdict", {"verdict": verdict})
    return judge.assets(model, response, figures, checks, llm_batch)
