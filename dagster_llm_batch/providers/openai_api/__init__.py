"""OpenAI's API in the form of many servers: lines, replies, batches, errors, and facts about each server.

The providers `openai` and `openrouter` share it with the providers on the user's machines, whose engines read and write
its lines.
"""
