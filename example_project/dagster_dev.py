"""A real Dagster on loopback: `dagster dev` with its webserver, its daemon and a home of its own, as a child process.

Invariants: one Dagster a home, since two daemons would do everything twice. One that runs already is used, and left
running; one whose example was killed is stopped first, since nobody else would. What is started here is stopped here,
with all its processes. Batches are not among them: they are detached.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DagsterError", "RunningDagster", "dagster", "end_dead_runs"]

_ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS, _STOP_SECONDS = 300, 30
_INSTANCE = """\
telemetry: {enabled: false}
nux: {enabled: false}
"""
_LOCATIONS = """{ workspaceOrError { __typename ... on PythonError { message } ... on Workspace { locationEntries {
    name locationOrLoadError { __typename ... on PythonError { message stack } } } } } }"""


class DagsterError(Exception):
    """Dagster cannot go on; the message says why and where to look."""


@dataclass(frozen=True)
class RunningDagster:
    """Where it is, and whether it was there before."""

    url: str
    found: bool

    def query(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask GraphQL, as the UI does. Raises DagsterError."""
        content = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", content, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise DagsterError(f"Dagster answered {error.code}: {error.read()[:500].decode()}") from error
        except OSError as error:
            raise DagsterError(f"Dagster at {self.url} does not answer: {error}") from error
        if answer.get("errors"):
            raise DagsterError(f"Dagster refused a query: {answer['errors'][0]['message']}")
        return dict(answer["data"])


@contextlib.contextmanager
def dagster(home: Path) -> Iterator[RunningDagster]:
    """Dagster for this home until the block ends."""
    dagster_home = home / "dagster_home"
    try:
        dagster_home.mkdir(parents=True, exist_ok=True)
        (dagster_home / "dagster.yaml").write_text(_INSTANCE, encoding="utf-8")
    except OSError as error:
        raise DagsterError(f"{home} cannot be written ({error}). Set EXAMPLE_HOME to a folder that can.") from error
    note = home / "dagster.json"
    if (there := _answering(note)) is not None:
        if _is_alive(there["owner"]):
            yield RunningDagster(there["url"], found=True)
            return
        _stop_orphan(there["pid"])
    print("Starting Dagster, which takes up to half a minute", flush=True)
    end_dead_runs(dagster_home)
    log = home / "dagster.log"
    port = _free_port()
    running = RunningDagster(f"http://127.0.0.1:{port}", found=False)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)),
                *("-m", "example_project.definitions", "-d", str(_ROOT)),
            ],
            cwd=_ROOT,
            env={**os.environ, "DAGSTER_HOME": str(dagster_home)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to us alone, and we stop it in order
        )
    try:
        _wait(running, process, log)
        _write_note(note, {"url": running.url, "pid": process.pid, "owner": os.getpid()})
        yield running
    finally:
        note.unlink(missing_ok=True)
        _stop(process)


def end_dead_runs(dagster_home: Path) -> None:
    """Say of runs that were killed with their Dagster that they are over: automation would wait for them for ever."""
    import dagster as dg  # noqa: PLC0415 - one that runs already is found without

    status = dg.DagsterRunStatus
    alive = dg.RunsFilter(statuses=[status.STARTING, status.STARTED, status.CANCELING])
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        for run in instance.get_runs(alive):
            instance.report_run_canceled(run, "The Dagster that it ran in was stopped.")


def _wait(running: RunningDagster, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(DagsterError):
            workspace = running.query(_LOCATIONS)["workspaceOrError"]
            loaded = [entry["locationOrLoadError"] for entry in workspace.get("locationEntries", ())]
            failed = next((one for one in [workspace, *loaded] if one and one["__typename"] == "PythonError"), None)
            if failed is not None:
                break
            if loaded and all(loaded):
                return
        time.sleep(0.3)
    else:
        ended = process.poll()
        what = f"did not start within {_START_SECONDS} s" if ended is None else f"ended at once, with code {ended}"
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise DagsterError(f"Dagster {what}. The end of {log}:\n{tail}")
    raise DagsterError(f"the example's definitions do not load: {failed['message']}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it and all its processes: runs and code servers are in its process group."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _stop_orphan(pid: int) -> None:
    """The same for one that is not our child."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _STOP_SECONDS
    while _is_alive(pid) and time.monotonic() < until:
        time.sleep(0.3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _write_note(note: Path, written: dict[str, Any]) -> None:
    # whole or not at all: another example that reads half a note would start a second Dagster on this home
    half = note.with_suffix(".tmp")
    half.write_text(json.dumps(written), encoding="utf-8")
    half.replace(note)


def _answering(note: Path) -> dict[str, Any] | None:
    """A Dagster that runs on this home already: its address, its process, and that of the example it belongs to."""
    try:
        written: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        url, pid, _ = str(written["url"]), int(written["pid"]), int(written["owner"])
        if not _is_alive(pid):
            return None
        with urllib.request.urlopen(f"{url}/server_info", timeout=5) as response:
            return written if "dagster_version" in json.loads(response.read()) else None
    except (OSError, ValueError, KeyError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # nothing is sent
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    """A port of the system's choice: two examples that start at once must not meet on a usual one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
