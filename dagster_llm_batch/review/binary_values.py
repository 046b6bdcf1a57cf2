"""Values of binary columns: a PDF and an image are shown or offered, of all others the page has only their size."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from dagster_llm_batch.core.row_files import image_type_of

__all__ = ["BinaryValue", "describe_bytes", "read_bytes"]

_PDF, _PDF_HEADER = "application/pdf", b"%PDF-"
_MOST_SHOWN_BYTES = 20_000_000
"""A larger file is not put into the page."""


@dataclass(frozen=True)
class BinaryValue:
    """One binary value: its description and, for a PDF or an image, its data: address."""

    text: str
    address: str | None = None
    is_image: bool = False


def read_bytes(value: bytes) -> BinaryValue:
    """Return the value to show."""
    media_type = _media_type(value)
    if media_type is None or len(value) > _MOST_SHOWN_BYTES:
        return BinaryValue(describe_bytes(value))
    address = f"data:{media_type};base64,{base64.b64encode(value).decode()}"
    return BinaryValue(describe_bytes(value), address, media_type != _PDF)


def describe_bytes(value: bytes) -> str:
    """Return the type and the size of a binary value, as text in place of its bytes."""
    media_type = _media_type(value)
    name = "PDF, " if media_type == _PDF else "" if media_type is None else f"{media_type}, "
    return f"{name}{len(value):,} bytes"


def _media_type(value: bytes) -> str | None:
    return _PDF if value.startswith(_PDF_HEADER) else image_type_of(value)
