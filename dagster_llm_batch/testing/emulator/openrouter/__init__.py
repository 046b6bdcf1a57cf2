"""OpenRouter's wire, from its documents."""
