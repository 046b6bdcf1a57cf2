"""`dagster-llm-batch`: look at submissions, plan, cancel, resolve, retry, export and prune them, and check a deployment.

    where.py ──▶ Where: ledger, engine, code location ──▶ one module a command ──▶ show.py: a table, or JSON

Nothing here decides: every command is a few calls of the engine's and the ledger's own verbs.
"""
