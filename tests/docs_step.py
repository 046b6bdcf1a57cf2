"""The pages' code as their readers run it: in environments with only the packages that each page installs.

Pages with equal packages share an environment. The package is the built wheel; versions come from requirements/dev.txt.
An engine of hundreds of megabytes is left out: the page's code defines the engine's part, and the engine's own step
runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests import page as pages  # noqa: E402 - of this checkout
from tests.byte_code import share_byte_code  # noqa: E402

PINS = ROOT / "requirements" / "dev.txt"
HEAVY_EXTRAS = {"ray", "spark"}
# Their packages are large, too; tests/real_engines/lineage and tracking run the code of these pages.
_IN_STEPS_OF_THEIR_OWN = {"lineage.md", "mask-names.md", "track-evaluations.md"}
# Variables that a reader may have set, and variables that lead to this checkout.
_DROPPED = ("PYTHONPATH", "VIRTUAL_ENV", "DAGSTER_HOME", "PYTHONDONTWRITEBYTECODE", "OPENAI_BASE_URL")


def runnable() -> list[Path]:
    """Return the pages that have code. Commands follow Python on all of them except the reference."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in every if pages.blocks(page, "python", "csv") and page.name not in _IN_STEPS_OF_THEIR_OWN]


def run(named: Sequence[Path] = ()) -> bool:
    """Run these pages, or all. Print each with its time, and the output of failed ones."""
    groups: dict[tuple[str, ...], list[Path]] = {}
    for page in named or runnable():
        groups.setdefault(_light(pages.packages(page)), []).append(page)
    without = groups.pop((), [])
    for page in without:
        print(f"FAILED: {_name(page)} has code, and neither installs a package nor links to Install of docs/start.md")
    with tempfile.TemporaryDirectory(dir=ROOT, prefix=".venv-docs-") as folder:
        wheel = _build(Path(folder, "dist"))
        passed = [
            _runs(members, Path(folder, f"venv-{number}"), wheel, packages)
            for number, (packages, members) in enumerate(groups.items())
        ]
        passed += [
            _keeps_dagster_together(page, words, Path(folder), wheel) for page, words in _additions(named or runnable())
        ]
    return all(passed) and not without


def _runs(members: Sequence[Path], venv: Path, wheel: Path, packages: tuple[str, ...]) -> bool:
    """Run the pages in a new environment with these packages alone."""
    print(f"-- {' '.join(packages)}", flush=True)
    _make_environment(venv)
    _install(venv, wheel, packages, PINS)
    share_byte_code(venv)
    return _run_pages(venv / "bin" / "python", members)


def _additions(named: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield lines that add packages to the start page's, since some need a Dagster of their version."""
    for page in named:
        if page == pages.START:
            [line] = pages.install_lines(page)
            yield page, [*line, "dagster-aws"]
        elif set(pages.install_lines(pages.START)[0]) & set(pages.packages(page)):
            yield from ((page, _light(line)) for line in pages.install_lines(page))


def _keeps_dagster_together(page: Path, words: Sequence[str], folder: Path, wheel: Path) -> bool:
    """Install the start page's packages with the previous release of Dagster, then the page's additional ones."""
    lines = PINS.read_text(encoding="utf-8").splitlines()
    [pin] = re.findall(r"^dagster==(\S+)", "\n".join(lines), re.MULTILINE)
    before, after = folder / "before.txt", folder / "after.txt"
    others = [line for line in lines if not line.startswith("dagster")]
    before.write_text("\n".join([f"dagster<{pin}", *others]), encoding="utf-8")
    # Like an index: packages that accept the installed Dagster leave it in place.
    dagsters = [line.replace("==", "<=") for line in lines if line.startswith("dagster")]
    after.write_text("\n".join([*dagsters, *others]), encoding="utf-8")
    venv = folder / "later"
    _make_environment(venv)
    _install(venv, wheel, pages.packages(pages.START), before)
    _install(venv, wheel, words, after)
    check = [sys.executable, "-m", "uv", "pip", "check", "--python", str(venv / "bin" / "python")]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    passed = done.returncode == 0
    print(f"{'passed' if passed else 'FAILED'}: added later, as {_name(page)} does: {' '.join(words)}", flush=True)
    if not passed:
        print(done.stderr, "Name dagster-webserver and dagster-dg-cli in the same line.", sep="\n", flush=True)
    return passed


def _light(packages: Sequence[str]) -> tuple[str, ...]:
    """Leave out the heavy engines."""
    own = [
        pages.with_extras(sorted({*pages.extras_of(one)} - HEAVY_EXTRAS))
        for one in packages
        if one.startswith(pages.OWN)
    ]
    return (*own, *[one for one in packages if not one.startswith(pages.OWN)])


def _build(folder: Path) -> Path:
    _uv("build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT))
    [wheel] = folder.glob("*.whl")
    return wheel


def _make_environment(venv: Path) -> None:
    _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(venv))


def _install(venv: Path, wheel: Path, packages: Sequence[str], constraints: Path) -> None:
    wanted = [f"{one} @ {wheel.as_uri()}" if one.startswith(pages.OWN) else one for one in packages]
    python = str(venv / "bin" / "python")
    _uv("pip", "install", "--quiet", "--python", python, "--constraint", str(constraints), *wanted)


def _run_pages(python: Path, pages_: Sequence[Path]) -> bool:
    """Run the pages in this environment, in folders outside this checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    environment |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "OPENAI_API_KEY": "sk-emulator"}
    command = [str(python), "-W", "ignore", str(ROOT / "tests" / "page.py"), *map(str, pages_)]
    return subprocess.run(command, cwd=python.parent, env=environment, check=False).returncode == 0


def _uv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "uv", *arguments], cwd=ROOT, check=True)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(0 if run([Path(word).resolve() for word in sys.argv[1:]]) else 1)
