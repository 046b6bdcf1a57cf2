"""What grows past one machine: many shards of four workers on one PostgreSQL ledger, and the arithmetic from there.

python -m benchmarks.scale [--workers ray]   10,000 shards, a worker killed in the middle; and what a row takes
python -m benchmarks.scale --write           the same, kept in measured.json, and docs/design/scale.md written from it
python -m benchmarks.scale.day --write       the tables of docs/design/scale.md alone, from measured.json
"""
