"""A real, temporary PostgreSQL cluster that can be stopped. Needs the server's programs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

_SETTINGS = "-c listen_addresses= -c fsync=off -c full_page_writes=off"  # commits survive the server's end, not ours


class Cluster:
    """One server in a folder of its own, reached by a socket in it. Runs as the user `nobody` if we are root."""

    def __init__(self, binaries: Path) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="dlb-pg-", dir="/tmp"))  # short: socket paths end at 107 bytes
        self._control = (str(binaries / "pg_ctl"), "-D", f"{self.home}/data")
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self._who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.home, nobody.pw_uid, nobody.pw_gid)
        folder = ("-D", f"{self.home}/data")
        self._run(str(binaries / "initdb"), *folder, "-U", "dlb", "--auth=trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        self._run(*self._control, "-w", "-l", f"{self.home}/log", "-o", f"-k {self.home} {_SETTINGS}", "start")

    def stop(self, *, check: bool = True) -> None:
        """Stop at once, like a failing machine; committed data survives the next start."""
        self._run(*self._control, "-w", "-m", "immediate", "stop", check=check)

    def remove(self) -> None:
        self.stop(check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    def execute(self, statement: str) -> None:
        import psycopg2

        with closing(psycopg2.connect(host=str(self.home), user="dlb", dbname="postgres")) as connection:
            connection.autocommit = True
            connection.cursor().execute(statement)

    def kill_backends(self) -> None:
        """End all connections but our own."""
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def new_database(self) -> str:
        """Create an empty database; return its URL."""
        name = f"t{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
        return f"postgresql://dlb:unused-password@/{name}?host={self.home}"

    def _run(self, *command: str, check: bool = True) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=check, cwd=self.home, **quiet, **self._who)


def server_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else found[-1].parent if found else None
