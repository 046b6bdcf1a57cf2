"""The measurements: tables, a picture and a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from benchmarks.engines.watch import Run, Runs
from benchmarks.engines.work import SMALL_ROWS

_TITLES = {"python": "plain Python", "ray": "Ray Data", "spark": "Spark", "flink": "Flink"}
_PUBLISHED = {"ray": ("800,000", "50"), "spark": ("100,000", "150"), "flink": ("250,000", "100")}


def tables(runs: Mapping[str, Runs], rows: int) -> str:
    """Return tables of speed, latency and memory with the published figures, and of the cost of a killed worker."""
    return "\n\n".join((_speed(runs, rows), _latency(runs), _memory(runs), _killed(runs)))


def _speed(runs: Mapping[str, Runs], rows: int) -> str:
    lines = [
        (
            _TITLES[name],
            f"{whole.load:.0f}",
            f"{whole.seconds_up:.1f}",
            f"{rows / whole.seconds:,.0f}",
            f"{rows / max(whole.cpu_seconds, 0.01):,.0f}",
            f"{rows / cheap.seconds:,.0f}",
            _PUBLISHED.get(name, ("none", "none"))[0],
        )
        for name, (whole, _, cheap) in runs.items()
    ]
    head = ("Engine", "Load before", "Start, s", "Rows/s", "Rows per CPU second")
    return _table((*head, "Cheap rows/s", "Published, op/s"), lines)


def _latency(runs: Mapping[str, Runs]) -> str:
    plain = _small_ms(runs["python"].whole) if "python" in runs else None
    lines = []
    for name, (run, _, _) in runs.items():
        small = _small_ms(run)
        added = f"{small - plain:,.0f}" if small is not None and plain is not None else "not measured"
        published = _PUBLISHED.get(name, ("none", "none"))[1]
        lines.append((_TITLES[name], "not measured" if small is None else f"{small:,.0f}", added, published))
    return _table(("Engine", "Small job, ms", "Added, ms", "Published, ms"), lines)


def _memory(runs: Mapping[str, Runs]) -> str:
    lines = [
        (
            _TITLES[name],
            f"{run.memory_mean:,.0f}",
            f"{max(run.steady):,.0f}",
            f"{run.memory_deviation:,.0f}",
            f"{run.memory_deviation**2:,.0f}",
        )
        for name, (run, _, _) in runs.items()
    ]
    head = ("Engine", "Memory, mean, MB", "Most, MB", "Standard deviation, MB", "Variance, MB²")
    return _table(head, lines)


def _small_ms(run: Run) -> float | None:
    return median(run.latencies) * 1000 if run.latencies else None


def _killed(runs: Mapping[str, Runs]) -> str:
    lines = []
    for name, (_, run, _) in runs.items():
        if run.killed_at is None:
            lines.append((_TITLES[name], "ended before a worker could be killed", "", "", ""))
            continue
        recovered = "never" if run.seconds_to_recover is None else f"{run.seconds_to_recover:.1f}"
        ended = "went on to its end" if run.code == 0 else f"failed, code {run.code}"
        lines.append((_TITLES[name], ended, f"{run.rows_lost:,}", f"{run.rows_twice:,}", recovered))
    head = ("Engine", "The job", "Rows lost", "Rows labeled twice", "Next batch of a new worker after, s")
    return _table(head, lines)


def _table(head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    """Return a table in Markdown, with numbers on the right."""
    rule = ["---"] + ["---" if name == "The job" else "---:" for name in head[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def plot(runs: Mapping[str, Runs], path: Path) -> None:
    """Plot memory over time for each engine: undisturbed, and with a killed worker."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (name, (whole, killed, _)) in zip(panels, runs.items(), strict=True):
        for run, label in ((whole, "left alone"), (killed, "a worker killed")):
            axes.plot([at for at, _ in run.memory], [mb for _, mb in run.memory], label=label, linewidth=1.2)
        axes.axvspan(
            whole.seconds_up,
            whole.seconds_up + whole.seconds,
            color="tab:blue",
            alpha=0.12,
            linewidth=0,
            label="the job",
        )
        if killed.killed_after is not None:
            memory = [mb for at, mb in killed.memory if at <= killed.killed_after]
            axes.plot(killed.killed_after, memory[-1] if memory else 0, "x", color="tab:red", label="killed here")
        axes.set(title=_TITLES[name], xlabel="seconds since the start", xlim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_ylim(0)  # after all plots, since they share it
    panels[0].set_ylabel("memory of all processes, MB")
    panels[0].legend(frameon=False, loc="upper left", fontsize="small")
    figure.savefig(path, dpi=110)


def write(runs: Mapping[str, Runs], rows: int, machine: str, docs: Path) -> None:
    """Write the measured part of docs/engines/measured.md; its other text stays."""
    plot(runs, docs / "images" / "engines-measured.png")
    path = docs / "engines" / "measured.md"
    start, end = "<!-- measured -->\n", "<!-- /measured -->"
    text = path.read_text(encoding="utf-8")
    before, after = text.partition(start)[0], text.partition(end)[2]
    facts = f"{rows:,} rows, small jobs of {SMALL_ROWS}, each run once, one engine after the other; {machine}."
    path.write_text(f"{before}{start}\n{facts}\n\n{tables(runs, rows)}\n\n{end}{after}", encoding="utf-8")
    print(f"written: {path}")
