"""Workers on many machines, by Spark or Ray, and rows by Flink. The results are the same as in one process.

    driver                      workers
    rows ───────────────────▶   render, encode: one part file for each part of the rows
    order, dedupe, split ◀───   sizes and request_ids of the parts (the lines stay with the workers)
    files to write ─────────▶   request files, from the parts
    ledger ◀─────────────────   digests

The workers run the code of the single machine: `engine.request_parts`, `engine.collect`, `engine.label` and `metrics`.
That code uses only `protocols.Workers`; its implementations are here, and a labeling gets one. Only the driver writes
the ledger and talks to providers. Spark, Ray and Flink are imported on first use.
"""

from dagster_llm_batch.distributed.comparison import compare_spread
from dagster_llm_batch.distributed.flink import FlinkRows
from dagster_llm_batch.distributed.ray import RayWorkers
from dagster_llm_batch.distributed.spark import SparkWorkers

__all__ = ["FlinkRows", "RayWorkers", "SparkWorkers", "compare_spread"]
