"""How fast the package is, how much memory it takes, and what it saves: beside the floor, in the same minutes.

python -m benchmarks                     all of it, into docs/performance.md
python -m benchmarks pipeline money      some of: pipeline, sensor, partitions, money, startup; printed only
"""
