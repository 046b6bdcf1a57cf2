"""A real Dagster on loopback: `dagster dev` with webserver, daemon and a separate home, as a child process.

Invariants: a home has one Dagster, since two daemons would do everything twice. A Dagster that is already running is
used and left running. If its example was killed, it is stopped first, since nothing else stops it. A Dagster that was
started here is stopped here, with all its processes, but without the batches, which are detached.
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
from collections.abc import Callable, Iterator, Mapping
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
_LOADED = """{ __typename ... on PythonError { message } ... on Workspace { locationEntries {
    name locationOrLoadError { __typename ... on PythonError { message stack } } } } }"""
_LOCATIONS = f"{{ workspaceOrError {_LOADED} }}"
_RELOAD = f"mutation {{ reloadWorkspace {_LOADED} }}"


class DagsterError(Exception):
    """Dagster cannot continue; the message contains the reason and the place of details."""


@dataclass(frozen=True)
class RunningDagster:
    """A running Dagster: its address, whether it was running before, its log, and a test whether it has ended."""

    url: str
    found: bool
    log: Path
    has_ended: Callable[[], bool]

    def check(self) -> None:
        """Raise DagsterError if it has ended, since waiting would never end."""
        if self.has_ended():
            raise DagsterError(f"Dagster at {self.url} has ended.\n{end_of(self.log)}")

    def query(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send a GraphQL query, like the UI. Raises DagsterError."""
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

    def reload(self) -> None:
        """Load the definitions again: this command may have added assets. Raises DagsterError if they do not load."""
        _loaded(self.query(_RELOAD)["reloadWorkspace"])


@contextlib.contextmanager
def dagster(
    home: Path, *, answer_seconds: float = _ANSWER_SECONDS, ask_seconds: float = _ASK_SECONDS
) -> Iterator[RunningDagster]:
    """Run Dagster for this home until the block ends.

    Args:
        home: The folder for all its files.
        answer_seconds: The time in which a Dagster that is already running must answer. A busy one is slow.
        ask_seconds: The timeout of each request to it.
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
            start_new_session=True,  # only this process gets Ctrl-C, and stops it in order
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
    """Mark runs that were killed with their Dagster as canceled: automation would wait for them forever."""
    import dagster as dg  # noqa: PLC0415 - a Dagster that is already running is found without it

    status = dg.DagsterRunStatus
    alive = dg.RunsFilter(statuses=[status.STARTING, status.STARTED, status.CANCELING])
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        for run in instance.get_runs(alive):
            instance.report_run_canceled(run, "The Dagster that it ran in was stopped.")


def end_of(log: Path, lines: int = 20) -> str:
    """Return the last lines of a log, or the reason why it cannot be read."""
    try:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError as error:
        return f"  {log} cannot be read: {error}"
    return "\n".join([f"  the end of {log}:", *(f"    {line[:_LONGEST_LINE]}" for line in last)])


def _wait(running: RunningDagster, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        workspace: Mapping[str, Any] = {}
        with contextlib.suppress(DagsterError):
            workspace = running.query(_LOCATIONS)["workspaceOrError"]
        if workspace and _loaded(workspace):
            return
        time.sleep(0.3)
    ended = process.poll()
    what = f"did not start within {_START_SECONDS} s" if ended is None else f"ended at once, with code {ended}"
    raise DagsterError(f"Dagster {what}.\n{end_of(log)}")


def _loaded(workspace: Mapping[str, Any]) -> bool:
    """Return whether all code locations of an answer are loaded. Raises DagsterError if one does not load."""
    loaded = [entry["locationOrLoadError"] for entry in workspace.get("locationEntries", ())]
    failed = next((one for one in [workspace, *loaded] if one and one["__typename"] == "PythonError"), None)
    if failed is not None:
        raise DagsterError(f"the example's definitions do not load: {failed['message']}")
    return bool(loaded) and all(loaded)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End Dagster and all its processes: runs and code servers are in its process group."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _stop_orphan(pid: int) -> None:
    """End a Dagster that is not a child of this process, with all its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _STOP_SECONDS
    while _is_alive(pid) and time.monotonic() < until:
        time.sleep(0.3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _write_note(note: Path, written: dict[str, Any]) -> None:
    # The file is replaced as a whole. An example that reads half a note would start a second Dagster on this home.
    half = note.with_suffix(".tmp")
    half.write_text(json.dumps(written), encoding="utf-8")
    half.replace(note)


def _answering(note: Path, answer_seconds: float, ask_seconds: float) -> dict[str, Any] | None:
    """Find a Dagster that already runs on this home: its address, its process id and its example's process id.

    Wait for one that is too busy to answer, since a second one on the same home would do everything twice. Raises
    DagsterError if it does not answer in time.
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
            # Dagster does not listen there, so another process has the id of a Dagster that is gone.
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
        os.kill(pid, 0)  # 0 does not send a signal
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    """Return a port that the system chooses: two examples that start together must not choose the same one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
