"""Cascades of two models: the sample, the threshold, the escalation and the audit."""
