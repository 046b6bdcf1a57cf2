"""`dagster-llm-batch`: plan and look at submissions, cancel, resolve and retry them, export, prune, check a deployment.

    deployment.py: ledger, engine, code location ──▶ one module a group of commands ──▶ output.py: a table, or JSON

Each command is a few calls of the engine and the ledger. The rules are there, so Dagster and the command line agree.
"""
