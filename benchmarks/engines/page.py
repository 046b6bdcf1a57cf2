"""The figures as tables, as a picture and as a page of the documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median

from benchmarks.engines.watch import Run
from benchmarks.engines.work import SMALL_ROWS

Runs = Mapping[str, tuple[Run, Run]]
_TITLES = {"python": "plain Python", "ray": "Ray Data", "spark": "Spark", "flink": "Flink"}
_PUBLISHED = {"ray": ("800,000", "50"), "spark": ("100,000", "150"), "flink": ("250,000", "100")}


def tables(runs: Runs, rows: int) -> str:
    """Speed and memory beside the published figures, then what a killed worker cost."""
    return f"{_speed(runs, rows)}\n\n{_killed(runs)}"


def _speed(runs: Runs, rows: int) -> str:
    head = (
        "| Engine | Start, s | Rows/s | Rows per CPU second | Small job, ms | Added, ms | Memory, MB | Its deviation "
        "| Published, op/s | Published, ms |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    lines = [head]
    plain = _small_ms(runs["python"][0]) if "python" in runs else None
    for name, (run, _) in runs.items():
        small = _small_ms(run)
        added = f"{small - plain:,.0f}" if small is not None and plain is not None else "not measured"
        published = _PUBLISHED.get(name, ("none", "none"))
        cells = [
            _TITLES[name],
            f"{run.seconds_up:.1f}",
            f"{rows / run.seconds:,.0f}",
            f"{rows / max(run.cpu_seconds, 0.01):,.0f}",
            "not measured" if small is None else f"{small:,.0f}",
            added,
            f"{run.memory_mean:,.0f}",
            f"{run.memory_deviation:,.0f}",
            *published,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _small_ms(run: Run) -> float | None:
    return median(run.latencies) * 1000 if run.latencies else None


def _killed(runs: Runs) -> str:
    head = "| Engine | The job | Rows lost | Rows labeled twice | Next batch of a new worker after, s |\n"
    lines = [head + "| --- | --- | ---: | ---: | ---: |"]
    for name, (_, run) in runs.items():
        if run.killed_at is None:
            lines.append(f"| {_TITLES[name]} | ended before a worker could be killed | | | |")
            continue
        recovered = "never" if run.seconds_to_recover is None else f"{run.seconds_to_recover:.1f}"
        ended = "went on to its end" if run.code == 0 else f"failed, code {run.code}"
        lines.append(f"| {_TITLES[name]} | {ended} | {run.rows_lost:,} | {run.rows_twice:,} | {recovered} |")
    return "\n".join(lines)


def plot(runs: Runs, path: Path) -> None:
    """Memory over time of each engine, whole and with a killed worker."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, kind, title in zip(
        figure.subplots(1, 2, sharey=True), (0, 1), ("undisturbed", "a worker killed at 40 %"), strict=True
    ):
        for name, both in runs.items():
            memory = both[kind].memory
            axes.plot([at for at, _ in memory], [mb for _, mb in memory], label=_TITLES[name], linewidth=1.2)
        axes.set(title=title, xlabel="seconds since the start")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("memory of all processes, MB")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def write(runs: Runs, rows: int, machine: str, docs: Path) -> None:
    """The measured part of docs/engines/measured.md; what is said about it stays as somebody wrote it."""
    plot(runs, docs / "images" / "engines-measured.png")
    path = docs / "engines" / "measured.md"
    start, end = "<!-- measured -->\n", "<!-- /measured -->"
    text = path.read_text(encoding="utf-8")
    before, after = text.partition(start)[0], text.partition(end)[2]
    facts = f"{rows:,} rows, small jobs of {SMALL_ROWS}; {machine}."
    path.write_text(f"{before}{start}\n{facts}\n\n{tables(runs, rows)}\n\n{end}{after}", encoding="utf-8")
    print(f"written: {path}")
