"""Test ledgers: a SQLite file, and a database of a real, temporary PostgreSQL cluster. Also object stores.

DLB_TEST_POSTGRES=0 skips the PostgreSQL half if no server is installed; without it, a missing server is a failure.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pg_cluster import Cluster, server_binaries

from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.testing.emulator import local_gcs, local_s3

BUCKET = "payloads"


@pytest.fixture(scope="session")
def postgres_cluster():
    """Yield a running cluster."""
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    try:
        import psycopg2  # noqa: F401
    except (ImportError, SystemError) as error:  # a broken build raises SystemError
        pytest.fail(f"The PostgreSQL tests need a working psycopg2 >= 2.9 ({error!r}), or DLB_TEST_POSTGRES=0.")
    binaries = server_binaries()
    if binaries is None:
        pytest.fail("The PostgreSQL tests need a server's initdb (Debian: postgresql), or DLB_TEST_POSTGRES=0.")
    cluster = Cluster(binaries)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/home/ledger.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def new_ledger_url(request, tmp_path):
    """Return a function that makes empty databases, and returns their URLs; each test runs with both kinds."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/{uuid.uuid4().hex}/ledger.db"
    return request.getfixturevalue("postgres_cluster").new_database


@pytest.fixture
def ledger_url(new_ledger_url):
    """Return the URL of an empty database; each test runs with both kinds."""
    return new_ledger_url()


@pytest.fixture
def copy_ledger(request, new_ledger_url):
    """Return a function that copies a closed ledger, as a backup does, and returns the URL of the copy."""

    def copy(url: str) -> str:
        copied = new_ledger_url()
        source, target = (urlsplit(each).path for each in (url, copied))
        if url.startswith("sqlite"):
            Path(target[1:]).parent.mkdir()
            with closing(sqlite3.connect(source[1:])) as file, closing(sqlite3.connect(target[1:])) as to:
                file.backup(to)
        else:
            cluster = request.getfixturevalue("postgres_cluster")
            cluster.execute(f"DROP DATABASE {target[1:]}")
            cluster.execute(f"CREATE DATABASE {target[1:]} TEMPLATE {source[1:]}")
        return copied

    return copy


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        from datetime import datetime

        self.now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

    def __call__(self):
        return self.now

    def pass_seconds(self, seconds):
        from datetime import timedelta

        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(ledger_url, clock):
    ledger = Ledger(ledger_url, clock)
    yield ledger
    ledger.close()


@pytest.fixture(scope="session")
def s3():
    """Yield the root and the options of a payload store behind the S3 protocol."""
    with local_s3(BUCKET) as url:
        yield f"s3://{BUCKET}", {"key": "x", "secret": "x", "endpoint_url": url}


@pytest.fixture(scope="session")
def gcs():
    """Yield the same behind the Cloud Storage protocol."""
    with local_gcs(BUCKET) as url:
        yield f"gs://{BUCKET}", {"token": "anon", "endpoint_url": url}
