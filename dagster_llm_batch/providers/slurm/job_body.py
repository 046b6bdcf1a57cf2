"""Runs on the compute node: one array task of a batch. Standard library only; sbatch gets a copy of this file.

    job.py FOLDER

It can be started again at any point (requeue, node failure), also while a copy on a lost node still runs:

1. A task with `exit-N.json`, or one withdrawn before it started, is over and does not run.
2. `started-N.json` comes first: it proves that a batch ran, even after Slurm has dropped its record.
3. Each start writes to its own file, `out-N.START.part`. The first command to end renames its file to `out-N.jsonl`,
   and at last `exit-N.json` appears whole: {"code": …, "canceled": …, "ended_at": …}.
4. With `row_by_row`, good rows of earlier starts are kept and only the others are requested again.
5. SIGTERM (cancel, time limit, preemption) reaches the command's process group; its remaining processes are killed.
   Only a cancel through this package is an end. Else Slurm records the cause, or starts the job again.

Runs on Python 3.6, the version on some clusters.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_PLACEHOLDER = re.compile(r"\{(input|output|model)\}")
_LOOK_SECONDS = 0.2
_OK = 200


def main(folder: Path) -> int:
    """Run the task; its exit code is the command's."""
    os.umask(0o077)
    task = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    end = folder / f"exit-{task}.json"
    if end.exists() or (folder / "withdrawn").exists():
        return 0
    if (folder / "cancel").exists():
        _write(end, {"code": None, "canceled": True, "ended_at": time.time()})
        return 0
    start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    start_note = {
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "node": socket.gethostname(),
        "start": start,
        "at": time.time(),
    }
    _write(folder / f"started-{task}.json", start_note)
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    source, part = folder / f"in-{task}.jsonl", folder / f"out-{task}.{start}.part"
    kept = folder / f"kept-{task}.{start}.jsonl"
    if plan["row_by_row"]:
        source = _rest(folder, task, part, kept)
    values = {"input": str(source), "output": str(part), "model": plan["model"]}
    words = [_PLACEHOLDER.sub(lambda match: values[match.group(1)], word) for word in plan["command"]]
    code, was_told = _run(words, plan["grace_seconds"]) if source.stat().st_size else (0, False)
    canceled = was_told and (folder / "cancel").exists()
    if was_told and not canceled:
        # Slurm decides how this ends, or whether it starts again
        return 128 + signal.SIGTERM
    _publish(kept, part, folder / f"out-{task}.jsonl")
    _write(end, {"code": code, "canceled": canceled, "ended_at": time.time()})
    return int(code if code >= 0 else 128 - code)


def _rest(folder: Path, task: int, part: Path, kept: Path) -> Path:
    """Copy good rows of earlier starts to `kept`; returns the file of the requests that are left."""
    source, seen = folder / f"in-{task}.jsonl", set()
    with kept.open("wb") as out:
        for earlier in sorted(folder.glob(f"out-{task}.*.part")):
            for line in _whole_lines(earlier) if earlier != part else ():
                name = _good(line)
                if name is not None and name not in seen:
                    seen.add(name)
                    out.write(line)
    if not seen:
        return source
    print(f"{len(seen)} rows of earlier starts are kept", flush=True)
    rest = part.with_suffix(".rest")
    with source.open("rb") as lines, rest.open("wb") as out:
        out.writelines(line for line in lines if line.strip() and json.loads(line)["custom_id"] not in seen)
    return rest


def _whole_lines(path: Path) -> list:  # type: ignore[type-arg]  # no generics at run time
    with path.open("rb") as lines:
        return [line for line in lines if line.endswith(b"\n")]


def _good(line: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN202 -- str or None, in a form that 3.6 reads
    """Return the custom_id of a row that was answered."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        row = json.loads(line)
        if not row.get("error") and row["response"]["status_code"] == _OK:
            return row["custom_id"]
    return None


def _run(words: list, grace_seconds: float) -> tuple:  # type: ignore[type-arg]  # no generics at run time
    """Return the exit code, below zero if a signal ended it, and whether it ended after a signal to stop."""
    signals = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: signals.append(True))
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 -- no shell
    except OSError as error:
        print(error, flush=True)
        return 127, False
    try:
        while not signals:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_LOOK_SECONDS)
                # Slurm's signal can reach the command before this process.
                return code, code != 0 and (bool(signals) or code == -signal.SIGTERM)
        print("asked to end (SIGTERM): canceled, over its time limit, or preempted", flush=True)
        _kill(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
        return -signal.SIGTERM, True
    finally:
        # workers that an engine left behind, too
        _kill(process.pid, signal.SIGKILL)
        process.wait()


def _kill(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _publish(kept: Path, part: Path, target: Path) -> None:
    """Kept and new rows under the final name, whole; another start that was first keeps its own."""
    whole = part
    if kept.exists() and kept.stat().st_size:
        whole = part.with_suffix(".whole")
        with whole.open("wb") as out:
            for piece in (kept, part):
                if piece.exists():
                    out.write(piece.read_bytes())
    if not whole.exists():
        return
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    # Only the first start can make a link. A copy on a lost node that came back must not replace the rows with which
    # the batch was already read.
    try:
        os.link(str(whole), str(target))
    except FileExistsError:
        return
    except OSError:
        # The file system has no links.
        whole.rename(target)


def _write(path: Path, value: dict) -> None:  # type: ignore[type-arg]  # JSON
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
