"""The time from a batch's end to materialized labels in a live Dagster, with daemon, sensors and a process a run.

python -m benchmarks.latency days ...
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml  # type: ignore[import-untyped]

from benchmarks.measure import ROOT
from dagster_llm_batch.testing.emulator import Emulator

_LOCATION = "benchmarks.latency_location"
_QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
_PATIENCE_SECONDS = 1_800.0
_TICK_SECONDS = 30


@dataclass(frozen=True)
class Landing:
    """Seconds from the end of a batch, or from a flag, until a run is requested, started, and done."""

    asked_s: float
    started_s: float
    landed_s: float

    @property
    def run_s(self) -> float:
        """Seconds of the run itself, from its start to its last materialization."""
        return self.landed_s - self.started_s


def measure(days: int) -> tuple[Landing, Landing]:
    """Materialize `days` partitions in one run; compare an empty run with the same partitions and events."""
    # A run's process may still write its log at the end.
    with Emulator() as emulator, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home, flag = Path(folder) / "home", Path(folder) / "flag"
        home.mkdir()
        (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}}))
        (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"python_module": _LOCATION}]}))
        environment = {
            "DAGSTER_HOME": str(home),
            "LATENCY_DAYS": str(days),
            "LATENCY_TICK": str(_TICK_SECONDS),
            "LATENCY_URL": emulator.openai_base_url,
            "LATENCY_FLAG": str(flag),
            "LATENCY_TABLES": f"{folder}/tables",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        with dg.DagsterInstance.from_config(str(home)) as instance:
            _run([sys.executable, "-m", "benchmarks.latency", "submit"], environment)
            with _daemon(environment, home):
                _wait(lambda: _ticks(instance) > 0)
                ended_at = time.time()
                emulator.settle()
                landed = _landing(instance, "labels", days, ended_at)
                flagged_at = time.time()
                flag.touch()
                return landed, _landing(instance, "empty", days, flagged_at)


def submit() -> None:
    """Submit all days in one run, in this process."""
    from benchmarks import latency_location

    whole = latency_location.defs.resolve_implicit_global_asset_job_def()
    job = whole.get_subset(asset_selection={dg.AssetKey("labels_batch")})
    with dg.DagsterInstance.get() as instance:
        where = latency_location.where(latency_location.KEYS)
        assert job.execute_in_process(instance=instance, run_config=_QUIET, **where).success


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **environment})


@contextmanager
def _daemon(environment: dict[str, str], home: Path) -> Iterator[None]:
    """Run a daemon with the code location."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(home / "workspace.yaml")]
    with (home / "daemon.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def _ticks(instance: dg.DagsterInstance) -> int:
    """Return the number of finished ticks of the package's sensor."""
    states = instance.all_instigator_state()
    return sum(
        tick.end_timestamp is not None
        for state in states
        if state.instigator_name == "llm_batch_sensor"
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
    )


def _landing(instance: dg.DagsterInstance, asset: str, days: int, since: float) -> Landing:
    """Wait until all partitions are materialized, and return the times."""
    key = dg.AssetKey(asset)
    _wait(lambda: len(instance.get_materialized_partitions(key)) == days)
    newest = instance.fetch_materializations(key, limit=1).records[0]
    record = instance.get_run_record_by_id(newest.run_id)
    assert record is not None
    assert record.start_time is not None
    asked_at = record.create_timestamp.timestamp()
    return Landing(asked_at - since, record.start_time - since, newest.timestamp - since)


def _wait(until: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while not until():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"nothing came in {_PATIENCE_SECONDS:.0f} seconds")
        time.sleep(0.5)


def table(sizes: Sequence[int]) -> str:
    """Return the table as Markdown."""
    titles = ["Partitions", "", "A run is asked for after, s", "It starts after, s", "The run, s", "Ended to landed, s"]
    titles += ["A partition more than empty, ms", "Less an interval and the empty run, ms a partition"]
    lines = [f"| {' | '.join(titles)} |", "| ---: | --- |" + " ---: |" * (len(titles) - 2)]
    for days in sizes:
        landed, empty = measure(days)
        beyond = (landed.run_s - empty.run_s, landed.landed_s - _TICK_SECONDS - empty.run_s)
        each = " | ".join(f"{seconds / days * 1e3:.1f}" for seconds in beyond)
        for name, what, more in (("labels", landed, each), ("an empty run", empty, " | ")):
            figures: list[Any] = [what.asked_s, what.started_s, what.run_s, what.landed_s]
            lines.append(f"| {days} | {name} | {' | '.join(f'{figure:.1f}' for figure in figures)} | {more} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "submit":
        submit()
    else:
        print(table([int(days) for days in sys.argv[1:]]))
