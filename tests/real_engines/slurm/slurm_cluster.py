"""A real Slurm of two nodes on loopback, with or without accounting, in a separate folder: started, broken, stopped.

Needs root and Debian's packages (ENGINES in tests/__main__.py), but neither systemd nor cgroups. The nodes are two
slurmd on this host. Slurm polls the memory of jobs, so that a job can run out of it. All daemons are ended by the ids
in their own files.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

NEEDED = ("sbatch", "slurmctld", "slurmd", "munged")
NEEDED_FOR_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_NODES = 2


class Cluster:
    """A context manager. `environment` has the variables that Slurm's commands need to reach the cluster.

    `memory_mb` is the memory that each node offers, whatever the machine has.
    """

    def __init__(self, folder: Path, *, accounting: bool = False, memory_mb: int = 4_000, config: str = "") -> None:
        self.folder = folder
        self.accounting = accounting
        self.shared = folder / "shared"
        self._memory_mb = memory_mb
        self._config = config
        self._first_job_id = 1
        self._host = socket.gethostname().partition(".")[0]
        self._ports = _free_ports(_NODES + 2)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def call(self, *words: str, check: bool = True) -> str:
        """Run one of Slurm's commands, and return its output."""
        done = subprocess.run(words, env=self._env(), capture_output=True, text=True, check=False, timeout=60)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def forget_jobs(self) -> None:
        """Let the controller lose all jobs, as MinJobAge does in time. Here it happens at once, in the saved state."""
        self.kill_controller()
        for path in (self.folder / "ctld").glob("job*"):
            path.unlink()
        self._first_job_id += 1_000  # real ids are never given twice either
        (self.folder / "slurm.conf").write_text(self._slurm_conf())
        self.start_controller()

    def clear(self) -> None:
        """Cancel all jobs and wait for all nodes, for the next test."""
        self.call("scancel", "--me")
        _until(lambda: not self.call("squeue", "-h"))
        self._wait_for_nodes()

    def kill_controller(self, number: int = signal.SIGKILL) -> None:
        """End the controller. With SIGTERM, it first saves its state."""
        self._end("slurmctld.pid", number)

    def start_controller(self, *, idle: bool = True) -> None:
        self._daemon("slurmctld", "-f", self.environment["SLURM_CONF"])
        if idle:
            self._wait_for_nodes()

    def wait_for_requeue(self, name: str) -> None:
        """Wait until the job was put back and its first run has ended: it waits, or already runs again."""

        # Asking for PENDING alone is a race: the job waits only until its old credential has expired.
        def is_put_back() -> bool:
            words = self.call("squeue", "-h", f"--name={name}", "-O", "RestartCnt,State").split()
            return len(words) == 2 and int(words[0]) > 0 and words[1] in ("PENDING", "CONFIGURING", "RUNNING")

        try:
            _until(is_put_back, seconds=180)
        except AssertionError as error:
            error.add_note(
                self.call("squeue", "--states=all", check=False) + self.call("sinfo", "-N", "-l", check=False)
            )
            error.add_note((self.folder / "log" / "slurmctld.log").read_text()[-3_000:])
            raise

    def kill_node(self, name: str) -> None:
        """Kill the node's daemon and all processes below it, like a power cut."""
        doomed = [int((self.folder / "run" / f"slurmd.{name}.pid").read_text())]
        marks = (f"SLURMD_NODENAME={name}", f"SLURM_CONF={self.environment['SLURM_CONF']}")
        for pid, parent in _parents().items():
            with suppress(OSError):
                environment = Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace").split("\0")
                if all(mark in environment for mark in marks):
                    doomed += [pid, *([parent] if "slurmstepd" in _name_of(parent) else [])]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_node(self, name: str) -> None:
        self._daemon("slurmd", "-N", name, "-f", self.environment["SLURM_CONF"])

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment, "PATH": _PATH}

    def _start(self) -> None:
        for name in ("munge", "ctld", "spool", "log", "run/munge", "shared", "db"):
            (self.folder / name).mkdir(parents=True)
        for part in (self.folder, self.folder / "run", self.folder / "run" / "munge", self.folder / "log"):
            part.chmod(0o755)  # munged looks for holes
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._daemon(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self._socket}",
            f"--pid-file={self.folder}/run/munge/munged.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self.folder}/munge/seed",
            "--num-threads=2",
        )
        (self.folder / "slurm.conf").write_text(self._slurm_conf())
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        if self.accounting:
            self._start_accounting()
        self._daemon("slurmctld", "-f", self.environment["SLURM_CONF"])
        for name in self.nodes:
            self.start_node(name)
        self._wait_for_nodes()

    @property
    def nodes(self) -> list[str]:
        return [f"n{number}" for number in range(1, _NODES + 1)]

    @property
    def _socket(self) -> Path:
        return self.folder / "run" / "munge" / "sock"

    def _slurm_conf(self) -> str:
        folder, (controller, accounting, *nodes) = self.folder, self._ports
        lines = [
            f"ClusterName=test\nSlurmctldHost={self._host}(127.0.0.1)\nSlurmctldPort={controller}",
            f"SlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\nAuthInfo=socket={self._socket},cred_expire=5",
            "CredType=cred/munge\nCommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory\nDefMemPerCPU=100",
            "JobAcctGatherType=jobacct_gather/linux\nJobAcctGatherFrequency=task=1\nJobAcctGatherParams=OverMemoryKill",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0",
            f"StateSaveLocation={folder}/ctld\nSlurmdSpoolDir={folder}/spool/%n",
            f"SlurmctldPidFile={folder}/run/slurmctld.pid\nSlurmdPidFile={folder}/run/slurmd.%n.pid",
            f"SlurmctldLogFile={folder}/log/slurmctld.log\nSlurmdLogFile={folder}/log/slurmd.%n.log",
            "MinJobAge=2\nKillWait=2\nReturnToService=2\nSlurmdParameters=config_overrides\nMpiDefault=none",
            f"FirstJobId={self._first_job_id}\nDebugFlags=NO_CONF_HASH",
            "MailProg=/bin/true\nInactiveLimit=0\nSlurmdTimeout=300\nMessageTimeout=3\nRebootProgram=/bin/true",
            *(
                f"NodeName={name} NodeHostname={self._host} NodeAddr=127.0.0.1 Port={port} CPUs=8"
                f" RealMemory={self._memory_mb}"
                for name, port in zip(self.nodes, nodes, strict=True)
            ),
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
        ]
        if self.accounting:
            lines += [
                "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1",
                f"AccountingStoragePass={self._socket}\nAccountingStoragePort={accounting}",
                "AccountingStoreFlags=job_comment\nAccountingStorageEnforce=limits,qos",
            ]
        return "\n".join([*lines, self._config, ""])

    def _start_accounting(self) -> None:
        folder, socket_path = self.folder, self.folder / "db" / "s.sock"
        data, log = folder / "db" / "data", folder / "log"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
        install += ["--auth-root-authentication-method=normal"]
        subprocess.run(install, env=self._env(), check=True, capture_output=True)
        with (log / "mariadb.log").open("wb") as out:
            self._mariadb = subprocess.Popen(
                [
                    "mariadbd",
                    "--no-defaults",
                    "--user=root",
                    f"--datadir={data}",
                    f"--socket={socket_path}",
                    "--skip-networking",
                    "--innodb-buffer-pool-size=64M",
                    "--innodb-lock-wait-timeout=900",
                    "--innodb-flush-log-at-trx-commit=0",
                ],
                env=self._env(),
                stdout=out,
                stderr=out,
            )
        client = ["mariadb", "--no-defaults", "-uroot", f"--socket={socket_path}", "-e"]
        # slurmdbd must not create the database itself: Debian's libmariadb loses an option when it connects again
        create = [*client, "create database slurm_acct"]
        _until(lambda: subprocess.run(create, env=self._env(), capture_output=True, check=False).returncode == 0)
        config = folder / "slurmdbd.conf"
        config.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self._socket}\nDbdHost={self._host}\nDbdAddr=127.0.0.1\n"
            f"DbdPort={self._ports[1]}\nSlurmUser=root\nCommunicationParameters=NoInAddrAny\n"
            f"PidFile={folder}/run/slurmdbd.pid\nLogFile={log}/slurmdbd.log\nStorageType=accounting_storage/mysql\n"
            "StorageHost=localhost\nStorageUser=root\nStorageLoc=slurm_acct\n"
        )
        config.chmod(0o600)
        self._daemon("slurmdbd", MYSQL_UNIX_PORT=str(socket_path))
        self._wait_for_accounting()
        self.call("sacctmgr", "--immediate", "add", "cluster", "test")
        self.call("sacctmgr", "--immediate", "add", "account", "team", "Cluster=test")
        self.call("sacctmgr", "--immediate", "add", "user", "root", "Account=team")

    def _wait_for_accounting(self) -> None:
        _until(lambda: "Cluster" in self.call("sacctmgr", "show", "cluster", check=False))

    def _wait_for_nodes(self) -> None:
        try:
            _until(lambda: self.call("sinfo", "-h", "-N", "-o", "%T", check=False).split() == ["idle"] * _NODES)
        except AssertionError:
            for log in (self.folder / "log").iterdir():
                print(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}")
            raise

    def _daemon(self, *words: str, **more: str) -> None:
        """Start a daemon. Slurm's daemons go to the background."""
        done = subprocess.run(
            words, env={**self._env(), **more}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"

    def _stop(self) -> None:
        with suppress(AssertionError, subprocess.TimeoutExpired):
            if (self.folder / "run" / "slurmctld.pid").exists():
                self.call("scancel", "--me", check=False)  # otherwise their processes would outlive the daemons
                _until(lambda: not self.call("squeue", "-h", check=False), seconds=10)
        for name in (
            *(f"slurmd.{node}.pid" for node in self.nodes),
            "slurmctld.pid",
            "slurmdbd.pid",
            "munge/munged.pid",
        ):
            self._end(name, signal.SIGKILL)  # its state is not needed any more
        if hasattr(self, "_mariadb"):
            self._mariadb.kill()
            self._mariadb.wait()

    def _end(self, pid_file: str, number: int) -> None:
        path = self.folder / "run" / pid_file
        try:
            pid = int(path.read_text())
            os.kill(pid, number)
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return
        with suppress(AssertionError):
            _until(lambda: _is_gone(pid), seconds=15)


def missing_programs() -> list[str]:
    """Return the programs that are not installed."""
    needed = (*NEEDED, *NEEDED_FOR_ACCOUNTING)
    return [program for program in needed if shutil.which(program, path=_PATH) is None]


def _until(holds, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _is_gone(pid: int) -> bool:
    """Return whether the process is dead; a zombie counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _parents() -> dict[int, int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return found


def _name_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""
