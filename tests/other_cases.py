"""Pytest plugin for the rest of the ten-minute run: other tests, cases and examples (`-p tests.other_cases`)."""

from __future__ import annotations

import pytest

from tests.sampled_cases import of_ten_minutes


# Called after -m has left out tests.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of the ten-minute run, except those with few random examples there."""
    had = {item for item in of_ten_minutes(items) if not _draws_examples(item)}
    if had:
        config.hook.pytest_deselected(items=list(had))
        items[:] = [item for item in items if item not in had]


def _draws_examples(item: pytest.Item) -> bool:
    return bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))
