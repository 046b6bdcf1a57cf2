"""Batch services that answer immediately, for measuring clients: wire protocols without rules, faults or validation.

For tests, use `dagster_llm_batch.testing.emulator`. It checks every request, and so takes longer than any client. Here
a batch ends when it is created. The mock runs in a separate process, whose time does not count.
"""
