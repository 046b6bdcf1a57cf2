"""Labeled datasets as Dagster assets. A run that ends, however it ends, never cancels a batch."""

from dagster_llm_batch.assets.dataset import ROLE_TAG, RowsContext
from dagster_llm_batch.assets.factory import llm_batch_assets
from dagster_llm_batch.assets.submission import SubmitConfig

__all__ = ["ROLE_TAG", "RowsContext", "SubmitConfig", "llm_batch_assets"]
