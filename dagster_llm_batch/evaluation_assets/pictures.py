"""Pictures in Markdown, since Dagster stores no images.

Each is kept in the event log for ever, so it is reduced to few colors, and a materialization has few of them.
"""

from __future__ import annotations

import base64
import io

__all__ = ["MAX_PICTURES", "picture"]

MAX_PICTURES = 6
"""Of one kind, for one materialization."""

_COLORS = 64


def picture(text: str, png: bytes) -> str:
    """A PNG as a data URI, with `text` in its place where it cannot be shown."""
    from PIL import Image  # noqa: PLC0415 - matplotlib, which drew it, brings it

    reduced = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE)
    image.save(reduced, "PNG", optimize=True)
    alt = text.translate(dict.fromkeys(map(ord, "[]()\\\n"), " "))
    return f"![{alt}](data:image/png;base64,{base64.b64encode(reduced.getvalue()).decode()})"
