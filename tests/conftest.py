"""Set-up for all tests."""

import functools
import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

with suppress(ModuleNotFoundError):  # engines with a separate environment do without it
    from hypothesis import settings

    # Examples are the same each time, so that a failure comes from a change; DLB_EXPLORE=1 tries others. They have no
    # time limit: a machine that does other work is no defect.
    settings.register_profile("untimed", deadline=None, derandomize="DLB_EXPLORE" not in os.environ)
    # For a second Python, after a complete run.
    settings.register_profile("few", settings.get_profile("untimed"), max_examples=20)
    settings.load_profile("untimed")

with suppress(ModuleNotFoundError):
    import botocore.session

    # Each session reads and parses the same megabytes of JSON, AWS's service models, which the tests never change. Here
    # they share one loader; everything else of a session is separate, as usual.
    botocore.session.create_loader = functools.cache(botocore.session.create_loader)

with suppress(ModuleNotFoundError):
    from alembic.script import ScriptDirectory

    # The same holds for Dagster's hundred database migrations, which it reads up to seven times to make an instance.
    ScriptDirectory.from_config = functools.cache(ScriptDirectory.from_config)

with suppress(ModuleNotFoundError):
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
    from sqlalchemy.engine import Engine
    from sqlalchemy.util import LRUCache

    # An engine of SQLAlchemy compiles each statement once. A deployment has few engines, but tests make thousands, of
    # Dagster's databases and of ledgers: a fifth of their time. Here all engines of SQLite share the compiled
    # statements.
    _statements = LRUCache(2_000)

    def _equals(dialect: SQLiteDialect_pysqlite, other: object) -> bool:
        return type(other) is type(dialect) and other._json_serializer is dialect._json_serializer

    def _get_statements(engine: Engine) -> LRUCache:
        return _statements if engine.dialect.name == "sqlite" else engine.__dict__["_compiled_cache"]

    def _set_statements(engine: Engine, own: LRUCache) -> None:
        engine.__dict__["_compiled_cache"] = own

    SQLiteDialect_pysqlite.__hash__ = lambda _dialect: hash(SQLiteDialect_pysqlite)
    SQLiteDialect_pysqlite.__eq__ = _equals
    Engine._compiled_cache = property(_get_statements, _set_statements)

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # otherwise gcsfs asks Google for each bucket's kind


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect tests without the garbage collector, and exempt their objects from later searches.

    Collected modules and tests contain no garbage, and looking for it took two fifths of the time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """If only slow tests are wanted, import only files that have some: a few of hundreds, in every worker."""
    if config.option.markexpr == "slow" and collection_path.suffix == ".py":
        return "mark.slow" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of value pairs that the platforms have covered, in all processes."""
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.getreports(kind)]
    told = [dict(getattr(one, "user_properties", ())) for one in reports]
    ran = [(one["platform"], one["platform_seconds"]) for one in told if "platform_seconds" in one]
    if ran:
        from tests.platforms.sample import summary

        terminalreporter.write_line(summary(ran))
