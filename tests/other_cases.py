"""Pytest plugin for what the ten-minute run leaves out: other tests, cases and examples (`-p tests.other_cases`)."""

from __future__ import annotations

import pytest

from tests.sampled_cases import of_ten_minutes


# After the tests are gone that -m leaves out.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that the ten-minute run has, but for those of which it draws few examples."""
    had = {item for item in of_ten_minutes(items) if not _draws_examples(item)}
    if had:
        config.hook.pytest_deselected(items=list(had))
        items[:] = [item for item in items if item not in had]


def _draws_examples(item: pytest.Item) -> bool:
    return bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))
