"""Labeled datasets as Dagster assets. A run never cancels a batch, however it ends."""

from dagster_llm_batch.assets.asset_rows import AssetRows
from dagster_llm_batch.assets.factory import llm_batch_assets
from dagster_llm_batch.assets.file_rows import FileRows
from dagster_llm_batch.assets.rows_context import RowsContext
from dagster_llm_batch.assets.sql_rows import SqlRows
from dagster_llm_batch.assets.submission import SubmitConfig
from dagster_llm_batch.assets.translator import ROLE_TAG, LLMBatchTranslator, LLMBatchTranslatorData

__all__ = [
    "ROLE_TAG",
    "AssetRows",
    "FileRows",
    "LLMBatchTranslator",
    "LLMBatchTranslatorData",
    "RowsContext",
    "SqlRows",
    "SubmitConfig",
    "llm_batch_assets",
]
