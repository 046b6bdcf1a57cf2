"""Batches that travel inline: OpenRouter's, and those of gateways that speak its API."""
