"""Answers of the emulated model, from a function that the caller supplies, or from `simulated_answer`.

An answer function gets the request body and the endpoint ("/v1/chat/completions") and returns
    str    the reply's text,
    dict   the reply's text as JSON,
    Reply  anything else: a refusal, a cut reply, an HTTP error, embeddings, another model name, exact token counts.
It may be called from several threads. If it raises, the request ends in an HTTP 500 with the error. Tokens are
estimated as one for four characters, unless the `Reply` has its own counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dagster_llm_batch.testing.emulator.documents import document_tokens
from dagster_llm_batch.testing.emulator.schemas import instance

Body = dict[str, Any]
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"
_DIMENSIONS = 8
_IMAGE_TOKENS = 85


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. `text` None with a `refusal` is a refusal; `status_code` other than 200 is an error with `message`.

    `truncated`: the text is the part before the output limit. `embeddings`: one vector an input. `moderation`: a score
    a category. `model` None: the requested model. Token counts None: estimated.
    """

    text: str | None = None
    refusal: str | None = None
    truncated: bool = False
    embeddings: list[list[float]] | None = None
    moderation: dict[str, float] | None = None
    model: str | None = None
    status_code: int = 200
    code: str | None = None
    message: str | None = None
    input_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int | None = None
    reasoning_tokens: int = 0
    cost_usd: float | None = None  # the cost that the vendor reports, like OpenRouter; in chat only


AnswerFunction = Callable[[Body, str], "dict[str, Any] | str | Reply"]


def simulated_answer(body: Body, endpoint: str) -> Reply:
    """Answer by default: JSON that satisfies the request's schema, chosen from its text by rules, without a model."""
    if endpoint == EMBEDDINGS:
        size = int(body.get("dimensions") or _DIMENSIONS)
        return Reply(embeddings=[_vector(text, size) for text in embedding_inputs(body)])
    if endpoint == MODERATIONS:
        return Reply(moderation=_scores("\n".join(_texts(body.get("input")))))
    text = last_user_text(body)
    form = response_format(body)
    if form.get("type") == "json_schema":
        return Reply(text=json.dumps(instance(form.get("schema", {}), text), ensure_ascii=False))
    if form.get("type") == "json_object":
        return Reply(text=json.dumps({"simulated": text[:200]}, ensure_ascii=False))
    return Reply(text=f"simulated reply to: {text[:200]}")


def as_reply(answer: dict[str, Any] | str | Reply) -> Reply:
    """Make one of the three forms of an answer."""
    if isinstance(answer, Reply):
        return answer
    return Reply(text=answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))


def response_format(body: Body) -> dict[str, Any]:
    """Return the structured-output form of a request, `{"type", "name", "strict", "schema"}`; empty for free text."""
    config = body.get("output_config")
    if isinstance(config, dict) and isinstance(config.get("format"), dict):
        return dict(config["format"])
    chat = body.get("response_format")
    if isinstance(chat, dict):
        inner = chat.get("json_schema")
        return {"type": chat.get("type"), **(inner if isinstance(inner, dict) else {})}
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    return dict(form) if isinstance(form, dict) else {}


def embedding_inputs(body: Body) -> list[str]:
    """Return the inputs of an embeddings request; a list of numbers is one tokenized input."""
    given = body.get("input")
    if isinstance(given, list) and not all(isinstance(part, int) for part in given):
        return [part if isinstance(part, str) else json.dumps(part) for part in given]
    return [given if isinstance(given, str) else json.dumps(given)]


def last_user_text(body: Body) -> str:
    """Return the text of the last user message, or the whole input where it is a plain string."""
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, list):
        users = [item for item in messages if isinstance(item, dict) and item.get("role") == "user"]
        return "\n".join(_texts(users[-1].get("content"))) if users else ""
    return messages if isinstance(messages, str) else ""


def prompt_tokens(body: Body) -> int:
    """Return the estimated input tokens of a request."""
    characters, images, documents = 0, 0, 0
    for key in ("messages", "input", "instructions", "system"):
        for text in _texts(body.get(key)):
            characters += len(text)
        images += _images(body.get(key))
        documents += document_tokens(body.get(key))
    return max(1, characters // 4) + images * _IMAGE_TOKENS + documents


def text_tokens(text: str) -> int:
    """Return the estimated output tokens of a text."""
    return max(1, len(text) // 4) if text else 0


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, Mapping):
        yield from _texts(value.get("content"))
        yield from _texts(value.get("text"))


def _images(value: Any) -> int:
    if isinstance(value, list):
        return sum(_images(item) for item in value)
    if isinstance(value, Mapping):
        return int(value.get("type") in {"image_url", "input_image", "image"}) + _images(value.get("content"))
    return 0


# https://platform.openai.com/docs/api-reference/moderations/object
_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic"),
)


def _scores(text: str) -> dict[str, float]:
    """Return a high score for each category whose name is in the text, a low one for any other."""
    words = text.lower()
    return {
        category: 0.9 if category in words else hashlib.sha256(f"{category}:{text}".encode()).digest()[0] / 10_000
        for category in _CATEGORIES
    }


def _vector(text: str, size: int) -> list[float]:
    numbers: list[float] = []
    block = 0
    while len(numbers) < size:
        digest = hashlib.sha256(f"{block}:{text}".encode()).digest()
        numbers += [byte / 128 - 1 for byte in digest]
        block += 1
    length = sum(number * number for number in numbers[:size]) ** 0.5 or 1.0
    return [number / length for number in numbers[:size]]
