"""One labeling workload of one's own on plain Python, Ray Data, Spark and Flink: `python -m benchmarks.engines`.

All four read the same JSON lines, label each text by the VADER lexicon in batches of 200 rows in two worker processes,
and write JSON lines. Measured are rows per second and per CPU second, what the engine adds to a small job when it is
warm, memory over time, and what a killed worker costs. The labels are real; no LLM is involved, so that the engine
itself is seen.
"""
