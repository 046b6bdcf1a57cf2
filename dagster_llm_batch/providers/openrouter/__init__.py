"""Batches that travel inline: OpenRouter's, and batches of gateways that have its API."""
