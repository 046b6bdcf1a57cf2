"""Evaluations as Dagster assets: candidates against gold, as tables, and as figures and pictures in the UI."""

from dagster_llm_batch.evaluation_assets.factory import evaluation_assets

__all__ = ["evaluation_assets"]
