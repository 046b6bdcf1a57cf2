"""Mistral: OpenAI's files and rows, with its own batch jobs."""
