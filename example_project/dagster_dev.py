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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DagsterError", "RunningDagster", "dagster", "end_dead_runs", "end_of"]

_ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS, _STOP_SECONDS, _ANSWER_SECONDS, _ASK_SECONDS = 300, 30, 120, 5
_LONGEST_LINE = 400
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
    """Where it is, whether it was there before, its log, and whether it has ended meanwhile."""

    url: str
    found: bool
    log: Path
    has_ended: Callable[[], bool]

    def check(self) -> None:
        """Raise DagsterError where it has ended: nothing that is waited for would ever come."""
        if self.has_ended():
            raise DagsterError(f"Dagster at {self.url} has ended.\n{end_of(self.log)}")

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
def dagster(
    home: Path, *, answer_seconds: float = _ANSWER_SECONDS, ask_seconds: float = _ASK_SECONDS
) -> Iterator[RunningDagster]:
    """Dagster for this home until the block ends.

    Args:
        home: Where it keeps all that it has.
        answer_seconds: So long one that runs already may take to answer; a busy one takes its time.
        ask_seconds: So long each question to it waits.
    """
    dagster_home = home / "dagster_home"
    try:
        dagster_home.mkdir(parents=True, exist_ok=True)
        (dagster_home / "dagster.yaml").write_text(_INSTANCE, encoding="utf-8")
    except OSError as error:
        raise DagsterError(f"{home} cannot be written ({error}). Set EXAMPLE_HOME to a folder that can.") from error
    note, log = home / "dagster.json", home / "dagster.log"
    if (there := _answering(note, answer_seconds, ask_seconds)) is not None:
        pid = there["pid"]
        if _is_alive(there["owner"]):
            yield RunningDagster(there["url"], found=True, log=log, has_ended=lambda: not _is_alive(pid))
            return
        _stop_orphan(pid)
    print("Starting Dagster, which takes up to half a minute", flush=True)
    end_dead_runs(dagster_home)
    port = _free_port()
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
    url = f"http://127.0.0.1:{port}"
    running = RunningDagster(url, found=False, log=log, has_ended=lambda: process.poll() is not None)
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


def end_of(log: Path, lines: int = 20) -> str:
    """Return the last lines of a log, or why there are none."""
    try:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError as error:
        return f"  {log} cannot be read: {error}"
    return "\n".join([f"  the end of {log}:", *(f"    {line[:_LONGEST_LINE]}" for line in last)])


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
        raise DagsterError(f"Dagster {what}.\n{end_of(log)}")
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


def _answering(note: Path, answer_seconds: float, ask_seconds: float) -> dict[str, Any] | None:
    """Find a Dagster that runs on this home already: its address, its process, and that of the example it belongs to.

    One that is there and too busy to answer is waited for: a second one on the same home would do everything twice.
    Raises DagsterError where it never answers.
    """
    try:
        written: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        url, pid, _ = str(written["url"]), int(written["pid"]), int(written["owner"])
    except (OSError, ValueError, KeyError):
        return None
    until = time.monotonic() + answer_seconds
    while _is_alive(pid):
        try:
            with urllib.request.urlopen(f"{url}/server_info", timeout=ask_seconds) as response:
                return written if "dagster_version" in json.loads(response.read()) else None
        except TimeoutError:
            pass
        except urllib.error.URLError as error:
            # nobody listens there, or somebody else: the process has the number of a Dagster that is gone
            if not isinstance(error.reason, TimeoutError):
                return None
        except (OSError, ValueError):
            return None
        if time.monotonic() > until:
            raise DagsterError(
                f"The Dagster of this folder at {url}, process {pid}, has not answered for {answer_seconds:g} s. Wait "
                f"until the machine is less busy, or end it (kill {pid}), and run this again."
            )
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
