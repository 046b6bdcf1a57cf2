"""The example: human-rated tweets, labeled by real small models on this machine, and evaluated."""
