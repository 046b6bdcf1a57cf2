"""A real `dagster dev` and a real emulator as processes, used over loopback and always ended."""

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
from pathlib import Path
from typing import Any

from tests.processes import command_lines

MARK = "DAGSTER_LLM_BATCH_LIVE_TEST"

# Background jobs of a shell ignore interrupts, and their children inherit this: only SIGKILL could end them.
_DEFAULT_SIGNALS = (
    "import os, signal, sys; "
    "[signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)]; "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, look: Callable[[], Any], log: Path, seconds: float = 600.0) -> Any:
    """Poll until `look` returns a true value, and return this value."""
    end = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        if time.monotonic() > end:
            tail = log.read_text(errors="replace")[-6000:]
            raise TimeoutError(f"{what}: not within {seconds:.0f} s. The end of the log:\n{tail}")
        time.sleep(0.5)


@contextlib.contextmanager
def process(
    mark: str, command: list[str], env: Mapping[str, str], log: Path, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in its own group. After the block, it and all processes that it started are ended."""
    with log.open("wb") as out:
        running = subprocess.Popen(
            [sys.executable, "-c", _DEFAULT_SIGNALS, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env, MARK: mark},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        ends = time.monotonic() + 30
        while (pids := marked(mark)) and time.monotonic() < ends:  # a killed process may just have started one
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def marked(mark: str) -> list[int]:
    """Return the processes with this mark in their environment, also indirectly started ones."""
    return [pid for pid, (_, environment) in command_lines().items() if f"{MARK}={mark}" in environment.split()]


class DagsterDev:
    """A running `dagster dev`, with its GraphQL."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def until(self, what: str, look: Callable[[], Any]) -> Any:
        return until(what, look, self.log)

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer = json.load(reply)
        assert "errors" not in answer, answer
        return answer["data"]

    def is_up(self) -> bool:
        try:
            nodes = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
        except (urllib.error.URLError, OSError):
            return False
        return bool(nodes["repositoriesOrError"].get("nodes"))

    def assets(self, fields: str) -> dict[str, list[dict[str, Any]]]:
        """Return these fields of the assets of each code location, by the name of its file, from GraphQL."""
        nodes = f"nodes {{ location {{ name }} {fields} }}"
        said = self.ask(f"{{ repositoriesOrError {{ ... on RepositoryConnection {{ {nodes} }} }} }}")
        return {node["location"]["name"]: node["assetNodes"] for node in said["repositoriesOrError"]["nodes"]}


@contextlib.contextmanager
def emulator(folder: Path, pace_seconds: float = 1.0) -> Iterator[dict[str, str]]:
    """Run the emulator as a process; yield the environment variables that it prints."""
    log = folder / "emulator.log"
    command = [sys.executable, "-m", "dagster_llm_batch.testing.emulator", "--pace-seconds", str(pace_seconds)]
    with process(f"{folder}/emulator", command, {}, log):
        told = until("the emulator's address", lambda: "OPENAI_API_KEY=" in log.read_text() and log.read_text(), log)
        lines = [line.removeprefix("export ") for line in told.splitlines() if line.startswith("export ")]
        yield dict(line.split("=", 1) for line in lines)


@contextlib.contextmanager
def dagster_dev(
    folder: Path, definitions: Path | list[Path], env: Mapping[str, str], settings: str = ""
) -> Iterator[DagsterDev]:
    """Run webserver and daemon on a Dagster home below `folder`, which a second call reuses; `settings` is more YAML.

    Each file of `definitions` is a separate code location.
    """
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\nnux: {{enabled: false}}\n{settings}")
    port, log = free_port(), folder / "dagster.log"
    dagster = str(Path(sys.executable).with_name("dagster"))
    files = definitions if isinstance(definitions, list) else [definitions]
    locations = [word for file in files for word in ("-f", str(file))]
    command = [sys.executable, dagster, "dev", *locations, "-h", "127.0.0.1", "-p", str(port)]
    with process(str(folder), command, {**env, "DAGSTER_HOME": str(home), "PYTHONUNBUFFERED": "1"}, log):
        dev = DagsterDev(f"http://127.0.0.1:{port}", log)
        dev.until("dagster dev", dev.is_up)
        yield dev
