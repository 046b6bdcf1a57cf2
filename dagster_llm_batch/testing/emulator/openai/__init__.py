"""OpenAI's wire, from its documents."""
