"""Statements that databases receive during a part of a test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa


@contextmanager
def statements() -> Iterator[list[str]]:
    """Keep the statements of this thread during the block. A lease's heartbeat runs in another thread."""
    asked: list[str] = []
    own = threading.current_thread()

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if threading.current_thread() is own:
            asked.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
