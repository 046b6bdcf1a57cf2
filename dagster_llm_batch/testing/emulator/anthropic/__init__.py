"""Anthropic's wire, from its documents."""
