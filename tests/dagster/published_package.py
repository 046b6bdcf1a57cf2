"""The published package, in a project outside of this checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "requirements" / "dev.txt"
SHARE = f"{sys.executable} {ROOT / 'tests' / 'byte_code.py'}"
"""A command that gives a new environment, its last argument, the byte code of this one, which saves compiling it."""


def uv() -> str:
    found = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, "uv is needed: pip install uv"
    return found


def built(folder: Path, *kinds: str) -> list[Path]:
    """Build the wheel or sdist of this checkout; without `kinds`, the sdist, and the wheel from it."""
    done = subprocess.run(
        [uv(), "build", "--quiet", "--out-dir", str(folder), *kinds, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted(one for one in folder.iterdir() if one.name.startswith("dagster_llm_batch"))


def environment(home: Path) -> dict[str, str]:
    """Return this process's variables without the ones that lead to this checkout."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV", "DAGSTER_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    return {**kept, "DAGSTER_HOME": str(home), "COLUMNS": "200"}
