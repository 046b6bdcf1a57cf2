"""Processes of tests, on Linux and macOS: fresh ones, the state of others, and the memory that one has taken.

Fresh ones do not pay the imports again: each is a fork of one server that has imported all.
"""

import multiprocessing
import resource
import subprocess
import sys
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
# A test process has one such server, and the last setting holds for it, so it is set only here.
PROCESSES.set_forkserver_preload(["tests.warm"])

# Bytes of getrusage's unit of memory.
_BYTES_A_UNIT = 1 if sys.platform == "darwin" else 1 << 10


def peak_bytes() -> int:
    """Return the most memory that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_A_UNIT


def state_of(pid: int) -> str:
    """Return the state of a process as a letter: T is stopped, Z has ended and is not yet waited for."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():  # the name before the state may hold spaces and parentheses
        return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    asked = ["ps", "-o", "stat=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()[:1]


def command_lines() -> dict[int, tuple[str, str]]:
    """Return the command line and the environment of each process whose environment may be read, by its id."""
    if not Path("/proc/self/environ").exists():
        return _listed_by_ps()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(folder / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
        except OSError:
            continue
        command, environment = (text.replace("\0", " ") for text in texts)
        found[int(folder.name)] = (command, environment)
    return found


def _listed_by_ps() -> dict[int, tuple[str, str]]:
    """Read both from one line of `ps`, the environment last."""
    found = {}
    for options in (["-axww"], ["-axwwE"] if sys.platform == "darwin" else ["axwwe"]):
        told = subprocess.run(
            ["ps", *options, "-o", "pid=,command="], capture_output=True, text=True, check=True
        ).stdout
        for line in told.splitlines():
            pid, _, text = line.strip().partition(" ")
            command, _ = found.setdefault(int(pid), (text, ""))
            found[int(pid)] = (command, text[len(command) :])
    return found
