"""Paths of stored files: built from any text, of plain segments that every disk and object store accepts."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from dagster_llm_batch.errors import ConfigError

__all__ = ["check_path", "namespace_folder", "payload_path"]

_MAX_CHARS = 64
_SLUG_CHARS = 40
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_KEPT = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")

# Windows reserves these names, with any extension.
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
)


def payload_path(namespace: str, asset: str, partition: str, submission_id: str, name: str) -> str:
    """Return the path of a submission's file. Any text is allowed; do not pass row data."""
    return "/".join(_segment(text) for text in (namespace, asset, partition, submission_id, name))


def namespace_folder(namespace: str) -> str:
    """Return the folder that holds all files of a namespace, and files of this namespace only."""
    return _segment(namespace)


def check_path(path: str) -> str:
    """Return `path` unchanged. Raises ConfigError if it is not a relative path of plain segments."""
    if not all(_SEGMENT.fullmatch(segment) for segment in path.split("/")):
        raise ConfigError(
            f"The payload path {path!r} is not one that works: it is made of segments of A-Z a-z 0-9 . _ - that start "
            "with a letter, digit or _, with / between them. Build it with payload_path."
        )
    return path


def _segment(text: str) -> str:
    """Return a plain text unchanged, else a slug, `--` and a digest, which is different from every plain text."""
    # Lower case only: on macOS and Windows, `Tickets` and `tickets` are one folder, where two assets would overwrite
    # each other's files.
    if not text:
        return "_"
    is_plain = len(text) <= _MAX_CHARS and _KEPT.fullmatch(text) and "--" not in text and ".." not in text
    if is_plain and text.partition(".")[0] not in _RESERVED:
        return text
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text)[:_SLUG_CHARS].strip("-")
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{slug or '_'}--{digest}"
