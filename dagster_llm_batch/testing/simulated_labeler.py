"""Answer an OpenAI batch file with made-up labels: `python -m dagster_llm_batch.testing.simulated_labeler IN OUT`.

A new project runs with it until a person names a model: without a key, a network or a cost. The labels are simulated.
Each is one of the labels that the response schema allows, chosen by a hash of the text, and means nothing.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

__all__ = ["answer", "main"]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the result line of one request line. The same text always gets the same labels."""
    body = request["body"]
    text = json.dumps(body["messages"][-1]["content"], ensure_ascii=False)
    form = body.get("response_format", {}).get("json_schema", {})
    properties = form.get("schema", {}).get("properties", {})
    values = {name: _choice(part, f"{name}:{text}") for name, part in properties.items()}
    content = json.dumps(values, ensure_ascii=False) if values else "simulated"
    words = {"prompt_tokens": len(text.split()), "completion_tokens": len(content.split())}
    reply = {
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {**words, "total_tokens": sum(words.values())},
    }
    return {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": reply}, "error": None}


def _choice(schema: dict[str, Any], text: str) -> Any:
    choices = schema.get("enum") or [schema.get("const", "simulated")]
    return choices[zlib.crc32(text.encode("utf-8", "surrogatepass")) % len(choices)]


def main() -> None:
    """Answer the file that the first argument names, into the second."""
    source, target = (Path(argument) for argument in sys.argv[1:])
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(answer(json.loads(line)), ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    main()
