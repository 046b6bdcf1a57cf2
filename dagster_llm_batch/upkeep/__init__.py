"""Upkeep of a deployment: adopt, erase and prune."""
