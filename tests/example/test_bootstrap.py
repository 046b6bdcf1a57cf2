"""Set-up completes after an interrupted one: a real environment, uv, and packages of one file each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
BUILD_BACKEND = f"""
import zipfile
from pathlib import Path

def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(Path(folder) / "project-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("project.pth", str(Path.cwd()))
        wheel.writestr("project-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: project\\nVersion: 1.0\\n")
        wheel.writestr("project-1.0.dist-info/WHEEL", {WHEEL!r})
        wheel.writestr("project-1.0.dist-info/RECORD", "")
    return "project-1.0-py3-none-any.whl"
"""
# `python3 -m tests` has uv in the environment of its slow tests only
pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a checkout that requires one package of one file. Its environment is empty, and it uses no package index."""
    wheels = tmp_path / "wheels"
    for folder in ("example_project", "requirements", "wheels", ".example"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "example_project" / "bootstrap.py", tmp_path / "example_project")
    with zipfile.ZipFile(wheels / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    (tmp_path / "requirements" / "example.txt").write_text(f"--no-index\n--find-links {wheels}\ntiny==1.0\n")
    for name in ("weights", "gold"):
        (tmp_path / "requirements" / f"{name}.txt").write_text("# none\n")
    (tmp_path / ".example" / "vaderSentiment-2.5.tar.gz").touch()
    (tmp_path / "backend.py").write_text(BUILD_BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "project"\nversion = "1.0"\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    return tmp_path


def test_a_command_that_is_unknown_is_refused_before_anything_is_set_up(project):
    for name in ("__init__", "__main__", "arguments"):
        shutil.copy(ROOT / "example_project" / f"{name}.py", project / "example_project")
    before = {path for path in project.rglob("*") if "__pycache__" not in path.parts}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    for words, code, said in ((["uii"], 2, "invalid choice"), (["ui", "providers"], 2, "providers"), (["-h"], 0, "")):
        command = [sys.executable, "-m", "example_project", *words]
        done = subprocess.run(command, cwd=project, env=kept, capture_output=True, text=True, check=False)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "[set-up]" not in done.stdout + done.stderr
    assert {path for path in project.rglob("*") if "__pycache__" not in path.parts} == before


def set_up(project: Path, programs: Path = Path(sys.executable).parent) -> subprocess.CompletedProcess[str]:
    """Run the set-up with the uv among these programs, by default this environment's uv, without network."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "UV_SYSTEM_CERTS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    uv = {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(project / "cache"), "UV_LINK_MODE": "copy"}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, project / "example_project" / "bootstrap.py"]
    return subprocess.run(command, env={**kept, **uv, "PATH": path}, capture_output=True, text=True, check=False)


def imports_tiny(project: Path) -> bool:
    python = project / ".venv" / "bin" / "python"
    return subprocess.run([python, "-c", "import tiny"], capture_output=True, check=False).returncode == 0


def test_a_package_that_an_interrupted_set_up_left_half_is_whole_after_the_next_one(project):
    weights = project / "requirements" / "weights.txt"
    weights.write_text("--no-index\nnot-there==1.0\n")
    interrupted = set_up(project)
    assert "could not be installed" in interrupted.stderr, interrupted.stdout + interrupted.stderr
    [module] = (project / ".venv").rglob("tiny.py")
    module.unlink()  # uv still finds the package's metadata, and takes it as installed
    weights.write_text("# none\n")

    again = set_up(project)
    assert again.returncode == 0, again.stdout + again.stderr
    assert imports_tiny(project)
    assert "everything is there already" in set_up(project).stdout


def test_after_a_whole_set_up_packages_are_not_installed_anew(project):
    assert set_up(project).returncode == 0
    [module] = (project / ".venv").rglob("tiny.py")
    module.write_text("mine = True")
    (project / ".venv" / ".bootstrap-example").unlink()  # as if the requirements had changed
    assert set_up(project).returncode == 0
    assert module.read_text() == "mine = True"


def test_an_index_that_only_the_systems_certificates_know_is_asked_with_them(project):
    uv = project / "programs" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        "#!/bin/sh\n"
        f"echo certs=$UV_SYSTEM_CERTS $* >> {project}/asked\n"
        'if [ "$1" = pip ] && [ -z "$UV_SYSTEM_CERTS" ]; then\n'
        "    echo 'hint: use the `--system-certs` command-line flag' >&2; exit 2\n"
        "fi\n"
        f'exec {Path(sys.executable).with_name("uv")} "$@"\n'
    )
    uv.chmod(0o755)
    first = set_up(project, uv.parent)
    assert first.returncode == 0, first.stdout + first.stderr
    assert imports_tiny(project)
    (project / "asked").unlink()
    (project / ".venv" / ".bootstrap-example").unlink()
    assert set_up(project, uv.parent).returncode == 0
    assert all(line.startswith("certs=1 ") for line in (project / "asked").read_text().splitlines() if "pip" in line)
