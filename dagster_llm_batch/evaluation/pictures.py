"""Pictures in Markdown, since Dagster stores no images.

Each is kept in the event log for ever, so it is reduced to few colors, and a materialization has few of them.
"""

from __future__ import annotations

import base64
import io

__all__ = ["MAX_PICTURES", "picture", "reduced"]

MAX_PICTURES = 6
"""Of one kind, for one materialization."""

_COLORS = 64


def reduced(png: bytes) -> bytes:
    """The same picture in 64 colors, about a third of the bytes."""
    from PIL import Image  # noqa: PLC0415 - matplotlib, which drew it, brings it

    small = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    # an octree keeps the color of a thin line, which a median cut takes for a shade of something larger
    image = image.quantize(_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def picture(text: str, png: bytes) -> str:
    """A PNG as a data URI, with `text` in its place where it cannot be shown."""
    alt = text.translate(dict.fromkeys(map(ord, "[]()\\\n"), " "))
    return f"![{alt}](data:image/png;base64,{base64.b64encode(reduced(png)).decode()})"
