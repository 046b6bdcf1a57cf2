"""Plain English, checked: patterns of sentences that are hard to read, counted per room against a limit."""
