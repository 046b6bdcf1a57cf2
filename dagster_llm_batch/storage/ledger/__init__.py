"""The ledger: submissions, shards, events and leases on SQLite or PostgreSQL."""
