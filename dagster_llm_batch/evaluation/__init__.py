"""Evaluations as Dagster assets, with tables, figures and pictures in the UI.

They compare candidates with gold, with each other, with their earlier labels, by an LLM as judge, or with their own
answers in real time. Other assets show the costs, and train a student on the labels.
"""

from dagster_llm_batch.evaluation.agreement import agreement_assets
from dagster_llm_batch.evaluation.annotation import annotation_assets
from dagster_llm_batch.evaluation.costs import cost_assets
from dagster_llm_batch.evaluation.drift import drift_assets
from dagster_llm_batch.evaluation.estimates import estimate_assets
from dagster_llm_batch.evaluation.gather import gathered_labels
from dagster_llm_batch.evaluation.gold import evaluation_assets
from dagster_llm_batch.evaluation.gold_sample import gold_sample_assets
from dagster_llm_batch.evaluation.pairwise import pairwise_judge_assets
from dagster_llm_batch.evaluation.rubric import Rubric, rubric_judge_assets
from dagster_llm_batch.evaluation.skew import skew_assets
from dagster_llm_batch.evaluation.stop_rule import StopRule
from dagster_llm_batch.evaluation.student import student_assets, student_of
from dagster_llm_batch.evaluation.thresholds import AtLeast

__all__ = [
    "AtLeast",
    "Rubric",
    "StopRule",
    "agreement_assets",
    "annotation_assets",
    "cost_assets",
    "drift_assets",
    "estimate_assets",
    "evaluation_assets",
    "gathered_labels",
    "gold_sample_assets",
    "pairwise_judge_assets",
    "rubric_judge_assets",
    "skew_assets",
    "student_assets",
    "student_of",
]
