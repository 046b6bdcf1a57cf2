"""Mistral: OpenAI's files and rows, and batch jobs of its own."""
