"""Scaling past one machine: many shards, four workers and one PostgreSQL ledger, and estimates from these figures.

- python -m benchmarks.scale [--workers ray]: measure 10,000 shards, with a worker killed, and the cost of a row
- python -m benchmarks.scale --write: also store the figures in measured.json, and write docs/design/scale.md
- python -m benchmarks.scale.day --write: only write the tables of docs/design/scale.md, from measured.json
"""
