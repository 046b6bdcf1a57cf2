"""Ledgers to test: a SQLite file and a database of a real, throw-away PostgreSQL cluster. And object stores.

DLB_TEST_POSTGRES=0 skips the PostgreSQL half where no server is installed; without it, a missing server is a failure.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from datetime import UTC
from pathlib import Path

import pytest

from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.testing.emulator import local_gcs, local_s3

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # it asks for each bucket's kind at Google itself
BUCKET = "payloads"


def _server_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else found[-1].parent if found else None


def _unprivileged() -> dict[str, object]:
    """PostgreSQL refuses to run as root; as anyone else we run it as ourselves."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres_cluster():
    """The URL of the cluster up to the database's name."""
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    try:
        import psycopg2
    except (ImportError, SystemError) as error:  # a broken build raises SystemError
        pytest.fail(f"The PostgreSQL tests need a working psycopg2 >= 2.9 ({error!r}), or DLB_TEST_POSTGRES=0.")
    binaries = _server_binaries()
    if binaries is None:
        pytest.fail("The PostgreSQL tests need a server's initdb (Debian: postgresql), or DLB_TEST_POSTGRES=0.")
    home = Path(tempfile.mkdtemp(prefix="dlb-pg-", dir="/tmp"))  # short: socket paths end at 107 bytes
    who = _unprivileged()
    if who:
        os.chown(home, who["user"], who["group"])

    def run(*command: str) -> None:
        subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, **who)

    settings = f"-k {home} -c listen_addresses= -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
    try:
        run(str(binaries / "initdb"), "-D", f"{home}/data", "-U", "dlb", "--auth=trust", "-E", "UTF8", "--no-sync")
        run(str(binaries / "pg_ctl"), "-D", f"{home}/data", "-w", "-l", f"{home}/log", "-o", settings, "start")
        connection = psycopg2.connect(host=str(home), user="dlb", dbname="postgres")
        connection.autocommit = True
        yield connection, home
        connection.close()
    finally:
        subprocess.run(
            [str(binaries / "pg_ctl"), "-D", f"{home}/data", "-m", "immediate", "stop"],
            check=False,
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **who,
        )
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def sqlite_url(tmp_path):
    return f"sqlite:///{tmp_path}/home/ledger.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def new_ledger_url(request, tmp_path):
    """Gives the URLs of empty databases, of each kind in turn."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/{uuid.uuid4().hex}/ledger.db"
    connection, home = request.getfixturevalue("postgres_cluster")

    def made():
        name = f"t{uuid.uuid4().hex}"
        connection.cursor().execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return f"postgresql://dlb:unused-password@/{name}?host={home}"

    return made


@pytest.fixture
def ledger_url(new_ledger_url):
    """The URL of an empty database, of each kind in turn."""
    return new_ledger_url()


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
    """The root of a payload store in a real S3 protocol, and what it is opened with."""
    with local_s3(BUCKET) as url:
        yield f"s3://{BUCKET}", {"key": "x", "secret": "x", "endpoint_url": url}


@pytest.fixture(scope="session")
def gcs():
    """The same in a real Cloud Storage protocol."""
    with local_gcs(BUCKET) as url:
        yield f"gs://{BUCKET}", {"token": "anon", "endpoint_url": url}
