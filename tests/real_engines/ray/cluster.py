"""A real Ray of one node or more, in a separate network with only a loopback, since Ray listens on every address."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADDRESS = "http://127.0.0.1:8265"
_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000
_SET_FLAGS, _UP = 0x8914, 0x1 | 0x40
_SET_ADDRESS = 0x8916


def alone_on_loopback() -> None:
    """Put this process into a new network that has only a loopback."""
    uid = os.getuid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK | (0 if uid == 0 else _NEW_USER)) != 0:
        raise OSError(ctypes.get_errno(), "This system gives no network namespace, and Ray would listen everywhere.")
    if uid != 0:
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, _SET_FLAGS, struct.pack("16sh", b"lo", _UP))


def have_an_address() -> None:
    """Give this process's network an address other than 127.0.0.1, without which getaddrinfo finds no host's name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton("192.0.2.1"))
        fcntl.ioctl(one, _SET_ADDRESS, address)


class Cluster:
    """A cluster, started and stopped as process groups. Ray shares out `logical_cpus` of each node, not real CPUs."""

    def __init__(self, logical_cpus: int = 2) -> None:
        self._logical_cpus = logical_cpus
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._folder = ""

    def start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets' paths must be short
        head = ["--head", "--port=6379", f"--temp-dir={self._folder}"]
        head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", "--dashboard-port=8265"]
        process = self._ray("127.0.0.1", *head)
        end = time.monotonic() + 120
        while not _answers():
            assert process.poll() is None, Path(self._folder, "127.0.0.1.log").read_text()
            assert time.monotonic() < end, "the head never answered"
            time.sleep(0.2)

    def add_node(self) -> subprocess.Popen[bytes]:
        """Start one more node with its own address, and wait until it is ready."""
        number = len(self._nodes) + 1
        return self._ray(
            f"127.0.0.{number}", "--address=127.0.0.1:6379", f"--dashboard-agent-listen-port={52365 + number}"
        )

    def _ray(self, address: str, *words: str) -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).with_name("ray")
        environment = {
            **os.environ,
            "PATH": f"{ray.parent}{os.pathsep}{os.environ['PATH']}",  # a job's `python` is the workers' one
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # it kills workers because of other processes' memory
        }
        command = [str(ray), "start", "--block", f"--node-ip-address={address}", *words]
        command += [f"--num-cpus={self._logical_cpus}", "--object-store-memory=150000000"]
        with Path(self._folder, f"{address}.log").open("wb") as said:
            node = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        self._nodes.append(node)
        return node

    def kill(self) -> None:
        """End everything at once, like failing machines, without notice to other processes."""
        for node in self._nodes:
            kill_node(node)
        self._nodes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """Kill the node's daemons and all processes that they have started, like a power cut."""
    for pid in family(node.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def _answers() -> bool:
    try:
        with socket.create_connection(("127.0.0.1", 8265), 1) as one:
            one.sendall(b"GET /api/version HTTP/1.0\r\n\r\n")
            return b" 200 " in one.recv(100)
    except OSError:
        return False


def family(pid: int) -> list[int]:
    """Return the process and all processes that it has started, by the tree of parents."""
    found = [pid]
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = [tuple(map(int, line.split())) for line in listed.splitlines()]
    for one in found:
        found += [child for child, parent in parents if parent == one and child not in found]
    return found
