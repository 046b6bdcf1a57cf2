"""Mistral's wire, from its documents and from others' live observations."""
