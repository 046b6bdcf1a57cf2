"""Names of files in the payload store: relative POSIX paths of plain segments, whatever the users' texts hold.

1. Different texts give different segments, on file systems that ignore case too. Equal texts give equal ones.
2. A segment is at most 64 characters of `a-z 0-9 . _ -`, starts with a letter, digit or `_`, and can be read.
3. No path leaves the store: `check_path` refuses what is not a chain of plain segments.
"""

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
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
)  # by Windows, with any extension


def payload_path(namespace: str, asset: str, partition: str, submission_id: str, name: str) -> str:
    """Where a submission's file lies. Any text is allowed; row data has no business here."""
    return "/".join(_segment(text) for text in (namespace, asset, partition, submission_id, name))


def namespace_folder(namespace: str) -> str:
    """The folder that holds all files of a namespace, and no other's."""
    return _segment(namespace)


def check_path(path: str) -> str:
    """`path` as it is, or ConfigError where it is not a relative path of plain segments."""
    if not all(_SEGMENT.fullmatch(segment) for segment in path.split("/")):
        raise ConfigError(
            f"The payload path {path!r} is not one that works: it is made of segments of A-Z a-z 0-9 . _ - that start "
            "with a letter, digit or _, with / between them. Build it with payload_path."
        )
    return path


def _segment(text: str) -> str:
    """The text itself where it is plain, else a slug and `--` with a digest, which no plain text holds."""
    if not text:
        return "_"
    is_plain = len(text) <= _MAX_CHARS and _KEPT.fullmatch(text) and "--" not in text and ".." not in text
    if is_plain and text.partition(".")[0] not in _RESERVED:
        return text
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_text)[:_SLUG_CHARS].strip("-")
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{slug or '_'}--{digest}"
