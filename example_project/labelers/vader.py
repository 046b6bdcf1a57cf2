"""`python -m example_project.labelers.vader -i in.jsonl -o out.jsonl`: the rule-based VADER lexicon answers.

It only reads the last user message, not the system part or the examples. It can answer a `label` (by VADER's own
thresholds on its compound score), whether it `is_positive`, a `score` (the compound, -1 to 1) and a `confidence` (the
compound's distance from 0, up to 1). A schema that requires anything else is refused. Usage counts words between white
space, since VADER does not have a tokenizer. The authors of the gold standard made the lexicon, partly from the same
tweets, so its measured quality is too good.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from example_project.labelers.run_batch import Answer, Refusal, command
from example_project.prompt import text_of

__all__ = ["answering", "completion", "last_text", "main"]

_THRESHOLD = 0.05
"""VADER's documented bounds: positive from 0.05 up, negative from -0.05 down."""
_FINGERPRINT = "vaderSentiment-3.3.2"


@contextlib.contextmanager
def answering(model: str, _options: object = None) -> Iterator[Answer]:
    analyzer = SentimentIntensityAnalyzer()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        score = analyzer.polarity_scores(last_text(body))["compound"]
        label = "positive" if score >= _THRESHOLD else "negative" if score <= -_THRESHOLD else "neutral"
        known = {"label": label, "is_positive": label == "positive", "score": score, "confidence": abs(score)}
        return completion(model, known, body, _FINGERPRINT)

    yield answer


def last_text(body: dict[str, Any]) -> str:
    """Return the text to label, from the last user message. Raises Refusal without one."""
    message = next((m for m in reversed(body["messages"]) if m.get("role") == "user"), None)
    if message is None:
        raise Refusal(400, "There is no user message to label.", param="messages")
    return text_of(_text(message))


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    if any(part.get("type") != "text" for part in parts):
        raise Refusal(400, "This labeler reads text alone, no images or other parts.", param="messages")
    return "\n".join(part["text"] for part in parts)


def _reply(known: dict[str, object], response_format: dict[str, Any] | None) -> str:
    form = (response_format or {}).get("type", "text")
    if form == "text":
        return str(known["label"])
    if form == "json_object":
        return json.dumps({"label": known["label"]})
    if form != "json_schema":
        raise Refusal(400, f"response_format {form!r} is not supported.", param="response_format")
    schema = (response_format or {})["json_schema"]["schema"]
    properties = schema.get("properties", {})
    unknown = sorted(set(schema.get("required", ())) - set(known))
    if unknown or properties.keys().isdisjoint(known):
        asked = ", ".join(unknown) or "no label"
        message = f"This labeler can answer {', '.join(known)}; the schema asks for {asked}."
        raise Refusal(400, message, param="response_format")
    allowed = properties.get("label", {}).get("enum")
    if allowed is not None and known["label"] not in allowed:
        raise Refusal(400, f"The label is {known['label']}; the schema allows {allowed}.", param="response_format")
    return json.dumps({key: value for key, value in known.items() if key in properties})


def completion(model: str, known: dict[str, object], body: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """Return a chat completion with those of the known answers that the request asks for. Raises Refusal for others."""
    reply = _reply(known, body.get("response_format"))
    words, prompt_words = len(reply.split()), sum(len(_text(m).split()) for m in body["messages"])
    message = {"role": "assistant", "content": reply, "refusal": None}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_words, "completion_tokens": words, "total_tokens": prompt_words + words},
    }


def main(argv: list[str] | None = None) -> int:
    return command("example_project.labelers.vader", "vader", answering, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
