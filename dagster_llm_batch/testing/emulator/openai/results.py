"""A results file while it is written: one JSON line a row, bent by file faults. OpenAI's rows, and Anthropic's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from typing import IO, Any

from dagster_llm_batch.testing.emulator.blobs import Blob, scratch
from dagster_llm_batch.testing.emulator.faults import FileFault, FileKind
from dagster_llm_batch.testing.emulator.openai.wire import Body

_LINE_SEPARATOR = "\u2028"
_UNKNOWN = {"x_emulator_unknown": {"nested": [1, None, "future"]}}


class ResultFile:
    """Rows in, a `Blob` out; None if no row was written, since most vendors write no empty files."""

    def __init__(self, whole_file: Collection[FileKind], id_field: str = "custom_id") -> None:
        self._id_field = id_field
        self._handle: IO[bytes] = scratch()
        self._ending = b"\r\n" if "crlf" in whole_file else b"\n"
        self._blank = self._ending if "blank_lines" in whole_file else b""
        self._start = b"\xef\xbb\xbf" if "bom" in whole_file else b""
        self._last_row_at = 0

    def write(self, row: Body, faults: Collection[FileFault] = ()) -> None:
        """Write the row according to the faults: never, once, or more often."""
        kinds = {fault.kind for fault in faults}
        if "missing" in kinds:
            return
        if "extra_fields" in kinds:
            row = _extended(row)
        if "u2028" in kinds:
            _insert_line_separator(row)
        if "unknown_type" in kinds:
            row = self._of_unknown_type(row)
        if "renamed" in kinds:
            row = {**row, self._id_field: f"{row[self._id_field]}-1"}
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
        self._last_row_at = self._handle.tell()
        self._line(line[: len(line) // 2] if "malformed" in kinds else line)
        if "duplicate" in kinds:
            self._line(line)
        for fault in faults:
            if fault.kind == "foreign":
                foreign = {**row, self._id_field: fault.custom_id}
                if "id" in row:
                    foreign["id"] = f"{row['id']}f"
                self._line(json.dumps(foreign, ensure_ascii=False, separators=(",", ":")).encode())

    def _of_unknown_type(self, row: Body) -> Body:
        if "result" in row:  # Anthropic's rows name their type
            return {**row, "result": {**row["result"], "type": "brand_new"}}
        return {self._id_field: row.get(self._id_field), "brand_new": row.get("response") or row.get("modelOutput")}

    def drop_last_row(self) -> None:
        """Take back the row written last."""
        self._handle.seek(self._last_row_at)
        self._handle.truncate()

    def so_far(self) -> IO[bytes]:
        """Return the bytes written so far, from the start; read them before the next write."""
        self._handle.seek(0)
        copy = scratch()
        shutil.copyfileobj(self._handle, copy)
        copy.seek(0)
        return copy

    def finish(self, *, empty: bool = False) -> Blob | None:
        """Return the file, whole; with `empty` also one without a row."""
        if self._handle.tell() == 0 and not empty:
            self._handle.close()
            return None
        return Blob(self._handle)

    def close(self) -> None:
        """Throw the file away."""
        self._handle.close()

    def _line(self, line: bytes) -> None:
        self._handle.write((self._start if self._handle.tell() == 0 else b"") + line + self._ending + self._blank)


def _extended(row: Body) -> Body:
    extended = {**row, **_UNKNOWN}
    for outer, inner in (("response", "body"), ("result", "message")):
        holder = row.get(outer)
        if isinstance(holder, dict):
            extended[outer] = {**holder, **_UNKNOWN}
            if isinstance(holder.get(inner), dict):
                extended[outer][inner] = {**holder[inner], **_UNKNOWN}
    return extended


def _insert_line_separator(row: Body) -> None:
    response = row.get("response") or {}
    body = response.get("body") or (row.get("result") or {}).get("message") or response
    for holder, key in _texts(body):
        text = holder[key]
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            names = [name for name, part in value.items() if isinstance(part, str)]
            if names:  # the longest is likely free text, not an enum
                name = max(names, key=lambda known: len(value[known]))
                value[name] += _LINE_SEPARATOR
                holder[key] = json.dumps(value, ensure_ascii=False)
        else:
            middle = len(text) // 2
            holder[key] = text[:middle] + _LINE_SEPARATOR + text[middle:]


def _texts(body: Body) -> list[tuple[dict[str, Any], str]]:
    messages = [choice["message"] for choice in body.get("choices", [])]
    found = [(message, "content") for message in messages]
    found += [(part, "text") for item in body.get("output", []) for part in item.get("content", [])]
    found += [(block, "text") for block in body.get("content", [])]
    candidates = [candidate.get("content") or {} for candidate in body.get("candidates", [])]  # Gemini's rows
    found += [(part, "text") for content in candidates for part in content.get("parts", [])]
    return [(holder, key) for holder, key in found if isinstance(holder.get(key), str)]
