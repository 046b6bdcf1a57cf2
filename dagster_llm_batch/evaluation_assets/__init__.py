"""Evaluations as Dagster assets: candidates against gold, judged by an LLM, or against themselves in real time; as
tables, and as figures and pictures in the UI.
"""

from dagster_llm_batch.evaluation_assets.factory import evaluation_assets
from dagster_llm_batch.evaluation_assets.judge import pairwise_judge_assets, rubric_judge_assets
from dagster_llm_batch.evaluation_assets.sampling import gold_sample_assets
from dagster_llm_batch.evaluation_assets.skew import skew_assets

__all__ = [
    "evaluation_assets",
    "gold_sample_assets",
    "pairwise_judge_assets",
    "rubric_judge_assets",
    "skew_assets",
]
