"""A command with the file contract of `vllm run-batch`, for tests: answers each chat line with its text in capitals."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("-i", type=Path, required=True)
parser.add_argument("-o", type=Path, required=True)
parser.add_argument("--model", default="m")
parser.add_argument("--runs", type=Path, help="a line is added for each run")
parser.add_argument("--gate", type=Path, help="waits for this file before the last row")
parser.add_argument("--progress", action="store_true", help="writes OUT.progress")
parser.add_argument("--worker", type=Path, help="starts a process that never ends and writes its id here")
parser.add_argument("--deaf", action="store_true", help="ignores SIGTERM")
parser.add_argument("--say", default="")
parser.add_argument("--no-output", action="store_true")
parser.add_argument("--code", type=int, default=0)
options = parser.parse_args()

if options.deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if options.runs:
    with options.runs.open("a") as runs:
        runs.write(f"{os.getpid()}\n")
if options.worker:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    part = options.worker.with_suffix(".part")
    part.write_text(str(worker.pid))
    part.replace(options.worker)
print(f"\x1b[31m{options.say}\x1b[0m", flush=True)


def answer(line: bytes) -> dict:
    request = json.loads(line)
    body = request["body"]
    error, reply, status = None, None, 200
    if body["model"] != options.model:
        message = f"The model `{body['model']}` does not exist."
        error, status = {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}}, 404
    else:
        content = body["messages"][-1]["content"]
        words = len(content.split())
        reply = {
            "object": "chat.completion",
            "model": options.model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": content.upper()}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": words, "completion_tokens": words},
        }
    return {
        "id": "vllm-1",
        "custom_id": request["custom_id"],
        "response": {"status_code": status, "request_id": "vllm-batch-1", "body": reply},
        "error": error,
    }


if not options.no_output:
    lines = [line for line in options.i.read_bytes().split(b"\n") if line.strip()]
    with options.o.open("w", encoding="utf-8") as output:
        for number, line in enumerate(lines):
            if number == len(lines) - 1:
                output.flush()
                if options.progress:
                    options.o.with_name(options.o.name + ".progress").write_text(
                        json.dumps({"done": number, "total": 99})
                    )
                hopeless = time.monotonic() + 120  # a failed test leaves no process behind forever
                while options.gate and not options.gate.exists() and time.monotonic() < hopeless:
                    time.sleep(0.01)
            output.write(json.dumps(answer(line), ensure_ascii=False) + "\n")
sys.exit(options.code)
