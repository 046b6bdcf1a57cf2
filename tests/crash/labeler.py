"""The program of the command provider in these tests: it labels each line, and records the requests.

    labeler.py IN OUT ANSWERS [fails once: TEXT]

The first time, a line with TEXT gets the status 503, like a line at an overloaded server.
"""

import json
import os
import sys
from pathlib import Path


def main(source: Path, target: Path, answers: Path, fails_once: str = "") -> None:
    with target.open("w") as out:
        for line in source.read_bytes().splitlines():
            request = json.loads(line)
            fails = bool(fails_once) and fails_once.encode() in line and _is_first(answers.with_suffix(".failed"))
            entry = {
                "batch_id": source.parent.name,
                "custom_id": request["custom_id"],
                "body": json.dumps(request["body"], sort_keys=True),
                "is_billed": not fails,
            }
            with answers.open("a") as file:  # one write a line: several batches write at once
                file.write(json.dumps(entry) + "\n")
            out.write(json.dumps(_answer(request, 503 if fails else 200)) + "\n")


def _is_first(mark: Path) -> bool:
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _answer(request: dict, status: int) -> dict:
    text = json.dumps({"topic": "billing", "urgency": 3})
    message = {"role": "assistant", "content": text}
    reply = {
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }
    error = {"error": {"message": "overloaded", "type": "server_error", "code": status}}
    ok = status == 200
    return {
        "id": "one",
        "custom_id": request["custom_id"],
        "response": {"status_code": status, "request_id": "one", "body": reply if ok else None},
        "error": None if ok else error,
    }


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
