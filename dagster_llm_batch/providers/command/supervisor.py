"""Runs the command of one batch to its end, detached. Standard library only, started by path, so it starts at once.

    python supervisor.py JOB_DIR LOCK_FD

1. It holds an exclusive lock on `lock` for as long as it lives. The starter passes on the locked file, so a started
   batch never looks dead.
2. The command runs in its own process group. When the command ends, everything in the group is killed: engines that
   fork workers leave them behind. The group holds `command.lock` as long as one of its processes lives.
3. Output goes to a temporary name. When the command has ended it becomes `out.jsonl`, and at last `exit.json` is there
   as a whole: `{"code": …, "canceled": …, "ended_at": …}`. A batch with `exit.json` never runs again.
4. A file `cancel` asks to stop: SIGTERM, and SIGKILL after a grace.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_LOOK_SECONDS = 0.1


def main(job: Path, lock_fd: int) -> int:
    """Leave a process behind that runs the job, and return: so the starter has no child to wait for."""
    if os.fork():
        return 0
    os.set_inheritable(lock_fd, False)  # noqa: FBT003 -- by position only; the command must not hold it
    os.umask(0o077)
    if (job / "exit.json").exists():
        return 0
    plan = json.loads((job / "job.json").read_text(encoding="utf-8"))
    part = Path(plan["part"])
    for stale in (part, Path(plan["progress"])):
        # These are left of a run that was killed.
        stale.unlink(missing_ok=True)
    code, canceled = _run(job, plan)
    if part.exists():
        part.replace(job / "out.jsonl")
    _write(job / "exit.json", {"code": code, "canceled": canceled, "ended_at": time.time()})
    return 0


def _run(job: Path, plan: dict) -> tuple:  # type: ignore[type-arg]  # JSON
    """Return the exit code (None where it was never started) and whether it was canceled."""
    cancel = job / "cancel"
    if cancel.exists():
        return None, True
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    with (job / "log.txt").open("ab") as log, (job / "command.lock").open("wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        try:
            process = subprocess.Popen(  # noqa: S603 -- the user's own command, no shell
                plan["command"],
                cwd=plan["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(alive.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"{error}\n".encode())
            return 127, False
        try:
            _write(job / "group.json", {"group": process.pid, "supervisor": os.getpid()})
            while True:
                try:
                    return process.wait(_LOOK_SECONDS), False
                except subprocess.TimeoutExpired:
                    if cancel.exists():
                        return _stop(process, plan["grace_seconds"]), True
        finally:
            _kill(process.pid, signal.SIGKILL)
            process.wait()


def _stop(process: subprocess.Popen, grace_seconds: float) -> int:  # type: ignore[type-arg]  # no generics at run time
    _kill(process.pid, signal.SIGTERM)
    try:
        return process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        _kill(process.pid, signal.SIGKILL)
        return process.wait()


def _kill(group: int, number: int) -> None:
    # macOS raises PermissionError for a group that has only zombies left
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _leave(number: int, _frame: object) -> None:
    # through `finally`: the group does not outlive its supervisor
    raise SystemExit(128 + number)


def _write(path: Path, value: object) -> None:
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
