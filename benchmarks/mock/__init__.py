"""Batch services that answer at once, for measuring clients: wire protocols without rules, faults or validation.

`dagster_llm_batch.testing.emulator` is the one to test against; it checks every request, and so takes longer than any
client. Here a batch has ended when it was created. Runs as a process of its own, whose time nobody counts.
"""
