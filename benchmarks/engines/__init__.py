"""One workload with self-written labeling on plain Python, Ray Data, Spark and Flink: `python -m benchmarks.engines`.

All four read the same JSON lines, label each text by the VADER lexicon in batches of 200 rows in two worker processes,
and write JSON lines. The benchmark measures rows per second and per CPU second, the warm engine's overhead for a small
job, memory over time, and the cost of a killed worker. The labels are real. An LLM would hide the engine's own time, so
it is not used.
"""
