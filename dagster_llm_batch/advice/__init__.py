"""Choices and forecasts from history: models, batch sizes, costs and ends."""
