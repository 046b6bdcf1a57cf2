"""The program of the command provider here. It answers each line by its schema, and records the requests.

    labeler.py IN OUT ANSWERS

It refuses or garbles marked texts. The file of answers is its book.
"""

import json
import sys
from pathlib import Path

_TOPICS = ("billing", "bug", "how_to")
_VALUES = {
    "confidence": 0.5,
    "detail": {"reason": "said so", "score": 3},
    "tags": ["one"],
    "parts": [{"reason": "said so", "score": 3}],
}


def main(source: Path, target: Path, answers: Path) -> None:
    with target.open("w") as out:
        for line in source.read_bytes().splitlines():
            request = json.loads(line)
            refused = b"REFUSED" in line
            entry = {"custom_id": request["custom_id"], "body": json.dumps(request["body"], sort_keys=True)}
            with answers.open("a") as file:
                file.write(json.dumps({**entry, "billed": not refused}) + "\n")
            out.write(json.dumps(_answer(request, refused=refused)) + "\n")


def _answer(request: dict, *, refused: bool) -> dict:
    body = request["body"]
    asked = json.dumps(body["messages"])
    topic = next((topic for topic in _TOPICS if f" {topic}" in asked or f'"{topic}' in asked), "bug")
    form = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    fields = {name: _VALUES.get(name, topic) for name in form.get("properties", {})}
    text = "simulated reply" if not fields else "no JSON" if "GARBLED" in asked else json.dumps(fields)
    reply = {
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }
    error = {"error": {"message": "Refused.", "type": "invalid_request_error", "code": 400}}
    response = {"status_code": 400 if refused else 200, "request_id": "one", "body": error if refused else reply}
    return {"id": "one", "custom_id": request["custom_id"], "response": response, "error": None}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
