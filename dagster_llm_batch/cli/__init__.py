"""`dagster-llm-batch`: plan and look at submissions, cancel, resolve and retry them, export, prune, check a deployment.

    deployment.py: ledger, engine, code location ──▶ one module a group of commands ──▶ output.py: a table, or JSON

No command decides anything itself: each is a few calls of the engine and the ledger, so that Dagster and the command
line cannot disagree.
"""
