"""Evaluations as Dagster assets: candidates against gold, against each other, against their past, judged by an LLM, or
against themselves in real time; and what they have cost. As tables, and as figures and pictures in the UI.
"""

from dagster_llm_batch.quality.agreement import agreement_assets
from dagster_llm_batch.quality.costs import cost_assets
from dagster_llm_batch.quality.drift import drift_assets
from dagster_llm_batch.quality.factory import evaluation_assets
from dagster_llm_batch.quality.judge import pairwise_judge_assets, rubric_judge_assets
from dagster_llm_batch.quality.sampling import gold_sample_assets
from dagster_llm_batch.quality.skew import skew_assets

__all__ = [
    "agreement_assets",
    "cost_assets",
    "drift_assets",
    "evaluation_assets",
    "gold_sample_assets",
    "pairwise_judge_assets",
    "rubric_judge_assets",
    "skew_assets",
]
