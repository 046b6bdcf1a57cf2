"""Evaluations as Dagster assets: candidates against gold, against each other, against their past, judged by an LLM, or
against themselves in real time; and what they have cost. As tables, and as figures and pictures in the UI.
"""

from dagster_llm_batch.evaluation_assets.agreement import agreement_assets
from dagster_llm_batch.evaluation_assets.costs import cost_assets
from dagster_llm_batch.evaluation_assets.drift import drift_assets
from dagster_llm_batch.evaluation_assets.factory import evaluation_assets
from dagster_llm_batch.evaluation_assets.judge import pairwise_judge_assets, rubric_judge_assets
from dagster_llm_batch.evaluation_assets.sampling import gold_sample_assets
from dagster_llm_batch.evaluation_assets.skew import skew_assets

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
