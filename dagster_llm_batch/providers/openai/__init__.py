"""OpenAI's Batch API, and compatible servers."""
