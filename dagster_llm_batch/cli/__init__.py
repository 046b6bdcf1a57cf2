"""`dagster-llm-batch`: plan and look at submissions, cancel, resolve and retry them, export, prune, check a deployment.

    where.py ──▶ Where: ledger, engine, code location ──▶ one module a command ──▶ show.py: a table, or JSON

Nothing here decides: every command is a few calls of the engine's and the ledger's own verbs.
"""
