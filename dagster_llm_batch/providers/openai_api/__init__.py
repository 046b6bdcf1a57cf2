"""OpenAI's API as many servers speak it: lines, replies, batches, errors, and what is known of each server.

The providers `openai` and `openrouter` share it, and those on own machines, whose engines read and write its lines.
"""
