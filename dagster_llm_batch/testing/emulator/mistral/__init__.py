"""Mistral's wire, from its documents and from what others saw live."""
