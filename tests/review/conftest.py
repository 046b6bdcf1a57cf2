"""Pages that are served for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from served_pages import Client, on_socket


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Client]]:
    opened = []

    def start(app: Any) -> Client:
        opened.append(on_socket(app))
        return opened[-1].__enter__()

    yield start
    for each in opened:
        each.__exit__(None, None, None)
