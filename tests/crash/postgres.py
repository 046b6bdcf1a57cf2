"""A real PostgreSQL server for the length of a block, and empty databases in it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_LOCAL = "-c listen_addresses="
_CARELESS = f"{_LOCAL} -c fsync=off -c synchronous_commit=off -c full_page_writes=off"


@contextmanager
def postgres(*, durable: bool = False) -> Iterator[Callable[[], str]]:
    """Give a function that makes an empty database and returns its URL.

    The server needs no fsync to survive kills of clients. Measurements ask for a `durable` one.
    """
    import psycopg2

    binaries = _binaries()
    home = Path(tempfile.mkdtemp(prefix="dlb-pg-", dir="/tmp"))  # short: socket paths end at 107 bytes
    who: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(home, nobody.pw_uid, nobody.pw_gid)

    def run(*command: str, check: bool = True) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=check, cwd=home, **quiet, **who)

    control = (str(binaries / "pg_ctl"), "-D", f"{home}/data")
    try:
        run(str(binaries / "initdb"), "-D", f"{home}/data", "-U", "dlb", "--auth=trust", "-E", "UTF8", "--no-sync")
        run(*control, "-w", "-l", f"{home}/log", "-o", f"-k {home} {_LOCAL if durable else _CARELESS}", "start")

        def empty_database() -> str:
            name = f"t{uuid.uuid4().hex}"
            connection = psycopg2.connect(host=str(home), user="dlb", dbname="postgres")
            connection.autocommit = True
            try:
                connection.cursor().execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
            finally:
                connection.close()
            return f"postgresql://dlb@/{name}?host={home}"

        yield empty_database
    finally:
        run(*control, "-m", "immediate", "stop", check=False)
        shutil.rmtree(home, ignore_errors=True)


def end_idle_transactions(url: str) -> None:
    """Let the server end sessions of this database that are idle within a transaction for two seconds."""
    import psycopg2

    connection = psycopg2.connect(url)
    connection.autocommit = True
    name = connection.info.dbname
    connection.cursor().execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '2s'")
    connection.close()


def copy_database(url: str) -> str:
    """Copy a database, after ending its connections, and return the URL of the copy."""
    import psycopg2

    source, name = urlsplit(url).path.strip("/"), f"t{uuid.uuid4().hex}"
    user, [host] = urlsplit(url).username, parse_qs(urlsplit(url).query)["host"]
    connection = psycopg2.connect(host=host, user=user, dbname="postgres")
    connection.autocommit = True
    try:
        cursor = connection.cursor()
        cursor.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{source}'")
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
    finally:
        connection.close()
    return url.replace(source, name)


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if on_path is None and not found:
        raise FileNotFoundError(
            "A ledger in PostgreSQL needs a server's initdb (Debian: `apt-get install postgresql`)."
        )
    return Path(on_path).parent if on_path else found[-1].parent
