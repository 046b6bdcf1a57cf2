"""Steps of the engine on many machines, by Spark or Ray. What comes out is the same.

    driver                      workers
    rows ───────────────────▶   render, encode: one part file for each part of the rows
    order, dedupe, split ◀───   what the parts hold (the lines stay where they are)
    files to write ─────────▶   request files, from the parts
    ledger ◀─────────────────   digests

The functions are those of the single machine (`engine.rendering`, `core.results`, `core.labeling`, `evaluation`). Only
the driver writes the ledger and talks to providers. No engine is imported before it is used.
"""

from dagster_llm_batch.distributed.evaluating import compare_spread
from dagster_llm_batch.distributed.flink import FlinkRows
from dagster_llm_batch.distributed.ray import RayWorkers
from dagster_llm_batch.distributed.spark import SparkWorkers

__all__ = ["FlinkRows", "RayWorkers", "SparkWorkers", "compare_spread"]
