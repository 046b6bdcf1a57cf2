"""A command with the file contract of `vllm run-batch` and the faults in `FOLDER/faults`, in its first run only.

`faulty_command.py INPUT OUTPUT FOLDER` writes its good answers to `FOLDER/answered.jsonl`, one pair of batch and
request a line. Faults of rows strike marked rows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

source, target, folder = map(Path, sys.argv[1:])
answered = folder / "answered.jsonl"
faults = set() if answered.exists() else set((folder / "faults").read_text().split())
batch = source.parent.name
written: list[str] = []


def row(custom_id: str, status: int, content: str = '{"topic": "billing"}') -> dict:
    if status != 200:
        return {"custom_id": custom_id, "response": {"status_code": status, "body": None}, "error": {"message": "No."}}
    reply = {"role": "assistant", "content": content}
    body = {"model": "m", "choices": [{"index": 0, "message": reply, "finish_reason": "stop"}]}
    body["usage"] = {"prompt_tokens": 5, "completion_tokens": 5}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def write(request: dict, is_struck: bool) -> None:
    custom_id = request["custom_id"]
    is_struck = is_struck or "all" in faults
    status = next((int(word) for word in faults if word.isdigit() and is_struck), 200)
    if status == 200:
        with answered.open("a") as out:
            out.write(json.dumps([batch, json.dumps(request["body"], sort_keys=True)]) + "\n")
    answer = row(custom_id, status, "Billing." if is_struck and "invalid" in faults else '{"topic": "billing"}')
    if "extra" in faults:
        answer["x_unknown"] = {"nested": [1, None]}
    if is_struck and "unknown" in faults:
        answer = {"custom_id": custom_id, "brand_new": {}}
    if is_struck and "renamed" in faults:
        answer["custom_id"] += "-1"
    line = json.dumps(answer)
    if is_struck and "missing" in faults:
        return
    if is_struck and "malformed" in faults:
        line = line[: len(line) // 2]
    written.append(line)
    if is_struck and "duplicate" in faults:
        written.append(line)
    if is_struck and "foreign" in faults:
        written.append(line.replace(custom_id, "foreign-custom-id"))


answered.touch()
while "hangs" in faults and not (folder / "go-on").exists():
    time.sleep(0.01)
lines = source.read_bytes().splitlines()
for number, line in enumerate(lines):
    write(json.loads(line), b"[struck]" in line)
    if number == len(lines) // 2 and faults & {"killed", "half"}:
        break
if "shuffled" in faults:
    written.reverse()
end = "\r\n\n" if "odd-lines" in faults else "\n"
if "absent" not in faults:
    target.write_bytes((("\ufeff" if "odd-lines" in faults else "") + "".join(line + end for line in written)).encode())
if "killed" in faults:
    os.kill(os.getppid(), signal.SIGKILL)  # the supervisor, like a restart of the machine
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(1 if faults & {"half", "fails"} else 0)
