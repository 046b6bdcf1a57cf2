"""Convert a request body of any vendor, or a reply, to messages of text and images that a person can read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Part", "asked_last", "read_body", "read_prompt", "read_texts"]

_PDF = "application/pdf"
_IMAGE_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "jpg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"}

# Fields of the vendors' bodies with the system part of the prompt
_SYSTEM = ("system", "systemInstruction", "system_instruction", "instructions")
_MESSAGES = ("messages", "contents", "input", "inputs", "prompt", "inputText")
_ROLES = {"model": "assistant", "developer": "system"}


@dataclass(frozen=True)
class Part:
    """One piece of a message. `image`, or `document` for a PDF, is a data: address; anything else is JSON in `text`."""

    role: str
    text: str = ""
    image: str | None = None
    document: str | None = None


def read_body(line: bytes) -> Any:
    """Return a line's JSON, or its text if it is not JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return line.decode("utf-8", "replace")


def read_prompt(body: Any) -> list[Part]:
    """Return the messages of a request line of OpenAI, Anthropic, Bedrock, Vertex AI, Gemini and alike.

    None if the body has another form: then the page can only show the JSON itself.
    """
    if not isinstance(body, Mapping):
        return []
    for name in ("body", "params", "modelInput", "request"):
        if isinstance(inner := body.get(name), Mapping):
            return read_prompt(inner)
    parts = [part for name in _SYSTEM for part in _parts(body.get(name), "system")]
    for name in _MESSAGES:
        parts += _parts(body.get(name), "user")
    return parts


def asked_last(body: Any) -> list[Part]:
    """Return the last message of a request: examples of the prompt come before the row's own message."""
    parts = read_prompt(body)
    asked = [number for number, part in enumerate(parts) if part.role != "user"]
    return parts[asked[-1] + 1 :] if asked else parts


def read_texts(body: Any) -> list[str]:
    """Return the texts of a reply, in order, wherever its vendor keeps them."""
    if isinstance(body, Mapping):
        own = [body["text"]] if isinstance(body.get("text"), str) and body["text"] else []
        content = body.get("content")
        if isinstance(content, str) and content and body.get("role") in ("assistant", "model", None):
            own.append(content)
        return own + [text for key, value in body.items() if key != "text" for text in read_texts(value)]
    if isinstance(body, list):
        return [text for each in body for text in read_texts(each)]
    return []


def _parts(value: Any, role: str) -> Iterator[Part]:
    if value is None or value == "":
        return
    if isinstance(value, str):
        yield Part(role, value)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _parts(each, role)
    elif isinstance(value, Mapping):
        said = value.get("role")
        role = _ROLES.get(said, said) if isinstance(said, str) else role
        content = value.get("content", value.get("parts"))
        if content is not None:
            yield from _parts(content, role)
        elif (image := _image(value)) is not None:
            yield Part(role, image=image)
        elif (document := _document(value)) is not None:
            yield Part(role, document=document)
        elif (name := _name_of_document(value)) is not None:
            yield Part(role, f"[document: {name}]")
        elif isinstance(text := value.get("text"), str):
            yield Part(role, text)
        else:
            yield Part(role, json.dumps(value, ensure_ascii=False, indent=1))
    else:
        yield Part(role, str(value))


def _document(value: Mapping[str, Any]) -> str | None:
    """Return a PDF that the body holds as a data: address."""
    file = value.get("file", value)
    address = file.get("file_data", file.get("document_url")) if isinstance(file, Mapping) else None
    if isinstance(address, str):
        return address if address.startswith(f"data:{_PDF};base64,") else None
    # Anthropic, Gemini, and Bedrock's Converse.
    for inner, kind in ((value.get("source"), "media_type"), (value.get("inlineData"), "mimeType")):
        if isinstance(inner, Mapping) and inner.get(kind) == _PDF and isinstance(inner.get("data"), str):
            return f"data:{_PDF};base64,{inner['data']}"
    if isinstance(inner := value.get("document"), Mapping) and inner.get("format") == "pdf":
        source = inner.get("source")
        if isinstance(source, Mapping) and isinstance(source.get("bytes"), str):
            return f"data:{_PDF};base64,{source['bytes']}"
    return None


def _name_of_document(value: Mapping[str, Any]) -> str | None:
    """Return what the body calls a document that it holds but that is no PDF; its bytes are nothing to read."""
    file, source, inner = value.get("file", value), value.get("source"), value.get("document")
    if isinstance(file, Mapping) and str(file.get("file_data", "")).startswith("data:"):
        return str(file.get("filename", "file"))
    if value.get("type") == "document" and isinstance(source, Mapping) and isinstance(source.get("data"), str):
        return str(source.get("media_type", "file"))
    if isinstance(inner, Mapping) and isinstance(source := inner.get("source"), Mapping) and "bytes" in source:
        return f"{inner.get('name', 'file')} ({inner.get('format', 'unknown')})"
    return None


def _image(value: Mapping[str, Any]) -> str | None:
    """Return an image that the body holds as a data: address. One that it names by an address is not fetched."""
    address = value.get("image_url")
    address = address.get("url") if isinstance(address, Mapping) else address
    if isinstance(address, str):
        return address if address.startswith("data:image/") else None
    # Anthropic, Gemini, and Bedrock's Converse.
    for inner, kind, data in (
        (value.get("source"), "media_type", "data"),
        (value.get("inlineData", value.get("inline_data")), "mimeType", "data"),
    ):
        if isinstance(inner, Mapping) and isinstance(inner.get(data), str):
            mime = str(inner.get(kind, inner.get("mime_type", "")))
            return f"data:{mime};base64,{inner[data]}" if mime.startswith("image/") else None
    if isinstance(inner := value.get("image"), Mapping) and isinstance(source := inner.get("source"), Mapping):
        mime = _IMAGE_TYPES.get(str(inner.get("format")), "")
        if mime and isinstance(source.get("bytes"), str):
            return f"data:{mime};base64,{source['bytes']}"
    return None
