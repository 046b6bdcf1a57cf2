"""Count the input tokens of an image, a document, sound or film, by the vendors' formulas.

The size is read from the file's first bytes. Files given only by address are not loaded. Such an image is expected to
have 1,024 by 1,024 pixels, and its bound is the vendor's maximum for any image. None: there is no such maximum.

Formulas: IMAGE_TOKENS of `core/price_sources.py`. If two sources differ, the larger figure is taken. Only Gemini takes
files by address that are not images: pages and seconds count by its formulas, and their number is a guess. The model's
context limits their tokens.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping
from math import ceil, floor, sqrt
from typing import Any, NamedTuple

from dagster_llm_batch.core.documents import PDF
from dagster_llm_batch.types import Document, Image

__all__ = ["OPENAI_BOOKS", "InputTokens", "Size", "document_tokens", "image_size", "media_tokens"]

OPENAI_BOOKS = frozenset({"openai", "azure"})
"""The price book's ids of those who run OpenAI's models, and count as OpenAI does."""


class InputTokens(NamedTuple):
    """Input tokens of something. `bound`: the largest possible number; None if unknown."""

    expected: int
    bound: int | None


class Size(NamedTuple):
    """Pixels of an image."""

    width: int
    height: int


_USUAL = Size(1_024, 1_024)

# For a vendor without a known formula: more than any vendor's usual image, since it is a guess.
_UNKNOWN_VENDOR = 2_000

# Expected number of pages or seconds of a file by address.
_USUAL_PAGES, _USUAL_SECONDS = 10, 60


_GEMINI = re.compile("gemini")


def media_tokens(book: str | None, model: str, params: Mapping[str, Any], image: Image) -> InputTokens:
    """Return the input tokens of one image. `book`: the price book's id of the model's vendor."""
    name = model.lower()
    size = None if image.data is None else image_size(image.data)
    if "claude" in name:
        return _counted(size, _claude_tokens, name, _claude_cap(name)[1])
    if _GEMINI.search(name):
        named = image.media_type or mimetypes.guess_type((image.url or "").partition("?")[0])[0] or ""
        return _gemini_tokens(name, params, size, named.partition("/")[0])
    if book in OPENAI_BOOKS:
        if (tiles := _first(_TILES, name)) is not None:
            return _counted(size, _tile_tokens, tiles, tiles[0] + _MOST_TILES * tiles[1])
        if (patches := _first(_PATCHES, name)) is not None:
            multiplier, budget, _ = patches
            return _counted(size, _patch_tokens, patches, None if budget is None else ceil(budget * multiplier))
    return InputTokens(_UNKNOWN_VENDOR, None)


# The expected tokens of a page. Claude: a PDF of 3 pages has about 7,000, by
# https://platform.claude.com/docs/en/build-with-claude/pdf-support. OpenAI: the text and an image of each page, by
# https://developers.openai.com/api/docs/guides/pdf-files; the size of the image is not documented. Gemini: the table
# _GEMINI_PAGE, by https://ai.google.dev/gemini-api/docs/media-resolution.
_CLAUDE_PAGE, _TEXT_OF_PAGE = 2_334, 500
# Of a file that is not a PDF: as of English text.
_BYTES_OF_TOKEN = 4


def document_tokens(book: str | None, model: str, params: Mapping[str, Any], document: Document) -> InputTokens:
    """Return the input tokens of one document: those of a page for each page, or by its bytes if it has no pages.

    A page can have text of any length, so no bound is known but the model's context.
    """
    if document.data is not None and document.media_type != PDF:
        return InputTokens(ceil(len(document.data) / _BYTES_OF_TOKEN), None)
    pages = _USUAL_PAGES if document.pages is None else document.pages
    return InputTokens(pages * _page_tokens(book, model.lower(), params), None)


def _page_tokens(book: str | None, name: str, params: Mapping[str, Any]) -> int:
    if "claude" in name:
        return _CLAUDE_PAGE
    if _GEMINI.search(name):
        version, resolution = _gemini_resolution(name, params)
        table = _GEMINI_PAGE[version]
        return table.get(resolution, table[_GEMINI_USUAL[version][0]])
    image = media_tokens(book, name, params, Image())
    return image.expected + _TEXT_OF_PAGE


def _counted(size: Size | None, formula: Any, of_model: Any, most: int | None) -> InputTokens:
    if size is None:
        return InputTokens(formula(of_model, _USUAL), most)
    tokens = formula(of_model, size)
    return InputTokens(tokens, tokens)


def _first(table: tuple[tuple[re.Pattern[str], Any], ...], model: str) -> Any:
    return next((value for pattern, value in table if pattern.search(model)), None)


# Claude: patches of 28 pixels, after the image was fitted into a square with limits of pixels and of patches.
_CLAUDE_PATCH = 28
_CLAUDE_LARGE, _CLAUDE_SMALL = (2_576, 4_784), (1_568, 1_568)
_CLAUDE_IS_LARGE = re.compile(r"claude-(opus-4-[7-9]|(opus|sonnet|haiku|fable|mythos)-(?!4)\d)")


def _claude_cap(model: str) -> tuple[int, int]:
    return _CLAUDE_LARGE if _CLAUDE_IS_LARGE.search(model) else _CLAUDE_SMALL


def _claude_tokens(model: str, size: Size) -> int:
    edge, most = _claude_cap(model)
    width, height = sorted(_within(size, edge), reverse=True)
    # With too many patches, the longer side loses one after the other.
    for across in range(ceil(width / _CLAUDE_PATCH), 1, -1):
        down = ceil(min(across * _CLAUDE_PATCH, width) * height / width / _CLAUDE_PATCH)
        if across * down <= most:
            return across * down
    return 1


def _within(size: Size, edge: int) -> tuple[float, float]:
    """Return the size scaled down so that its longer side has at most `edge` pixels."""
    scale = min(1.0, edge / max(size))
    return size.width * scale, size.height * scale


# OpenAI's older models: a base, and a number of tokens for each tile of 512 pixels.
_TILES = tuple(
    (re.compile(pattern), tokens)
    for pattern, tokens in (
        (r"gpt-4o-mini", (2_833, 5_667)),
        (r"gpt-4o|gpt-4\.1(?!-(mini|nano))|gpt-4\.5|gpt-4-turbo|gpt-4-vision", (85, 170)),
        (r"gpt-5(\.1)?($|-\d|-chat|-codex|-pro)", (70, 140)),
        (r"^(ft:)?o(1|3)(-|$)", (75, 150)),
        (r"computer-use", (65, 129)),
    )
)
# 2,048 by 768 pixels: images are fitted into 2,048 by 2,048, with a shorter side of 768, so they have no more tiles.
_MOST_TILES = 8


def _tile_tokens(tokens: tuple[int, int], size: Size) -> int:
    base, tile = tokens
    width, height = _within(size, 2_048)
    shrink = min(1.0, 768 / min(width, height))
    return base + tile * ceil(width * shrink / 512) * ceil(height * shrink / 512)


# OpenAI's later models: patches of 32 pixels times a multiplier, up to a budget of patches and a longest side. With a
# budget of None the image is not made smaller. Requests use the default detail, so the rules are for that detail.
_PATCHES = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"gpt-4\.1-mini|gpt-5-mini", (1.62, 1_536, 2_048)),
        (r"gpt-4\.1-nano|gpt-5-nano", (2.46, 1_536, 2_048)),
        (r"o4-mini", (1.72, 1_536, 2_048)),
        (r"gpt-5\.[234]-mini", (1.62, 2_500, 2_048)),
        (r"gpt-5\.[234]-nano", (2.46, 2_500, 2_048)),
        (r"gpt-5\.[234]", (1.2, 2_500, 2_048)),
        (r"gpt-5\.5", (1.2, 10_000, 6_000)),
        (r"gpt-[56]", (1.2, None, None)),
    )
)


def _patch_tokens(rule: tuple[float, int | None, int | None], size: Size) -> int:
    multiplier, budget, edge = rule
    width, height = (float(size.width), float(size.height)) if edge is None else _within(size, edge)
    patches = ceil(width / 32) * ceil(height / 32)
    if budget is not None and patches > budget:
        shrink = sqrt(1_024 * budget / (width * height))
        across, down = width * shrink / 32, height * shrink / 32
        shrink *= min(floor(across) / across, floor(down) / down)
        patches = min(ceil(width * shrink / 32) * ceil(height * shrink / 32), budget)
    return ceil(patches * multiplier)


_GEMINI_3 = {"LOW": 280, "MEDIUM": 560, "HIGH": 1_120, "ULTRA_HIGH": 2_240}
_GEMINI_2 = {"LOW": 64, "MEDIUM": 256, "HIGH": 2_048}
_GEMINI_TILE, _GEMINI_TILE_PIXELS, _GEMINI_SMALL = 258, 768, 384


# By the version of Gemini: tokens of a page, and of a frame of film (one frame per second). Sound has as many in each
# version.
_GEMINI_PAGE = {2: {"LOW": 64, "MEDIUM": 256, "HIGH": 258}, 3: {"LOW": 280, "MEDIUM": 560, "HIGH": 1_120}}
_GEMINI_FRAME = {2: {"LOW": 64, "MEDIUM": 256, "HIGH": 258}, 3: {"LOW": 70, "MEDIUM": 70, "HIGH": 280}}
_GEMINI_SECOND_OF_SOUND = 32
_GEMINI_USUAL = {2: ("HIGH", "HIGH"), 3: ("MEDIUM", "LOW")}


def _gemini_resolution(model: str, params: Mapping[str, Any]) -> tuple[int, str]:
    """Return the version of Gemini, and the resolution that the parameters ask for."""
    given = str(params.get("mediaResolution") or params.get("media_resolution") or "")
    return 2 if re.search(r"gemini-[12]", model) else 3, given.removeprefix("MEDIA_RESOLUTION_").upper()


def _gemini_tokens(model: str, params: Mapping[str, Any], size: Size | None, kind: str) -> InputTokens:
    version, resolution = _gemini_resolution(model, params)
    page, frame = (resolution if resolution in _GEMINI_PAGE[2] else usual for usual in _GEMINI_USUAL[version])
    match kind:
        case "application":
            return InputTokens(_USUAL_PAGES * _GEMINI_PAGE[version][page], None)
        case "audio":
            return InputTokens(_USUAL_SECONDS * _GEMINI_SECOND_OF_SOUND, None)
        case "video":
            each = _GEMINI_FRAME[version][frame] + _GEMINI_SECOND_OF_SOUND
            return InputTokens(_USUAL_SECONDS * each, None)
    if version == 3:  # noqa: PLR2004 - that of Gemini
        tokens = _GEMINI_3.get(resolution, _GEMINI_3["HIGH"])
        return InputTokens(tokens, tokens)
    if resolution in _GEMINI_2:
        return InputTokens(_GEMINI_2[resolution], _GEMINI_2[resolution])
    if size is None:
        return InputTokens(_GEMINI_TILE * 4, None)
    if max(size) <= _GEMINI_SMALL:
        return InputTokens(_GEMINI_TILE, _GEMINI_TILE)
    tiles = ceil(size.width / _GEMINI_TILE_PIXELS) * ceil(size.height / _GEMINI_TILE_PIXELS)
    return InputTokens(tiles * _GEMINI_TILE, tiles * _GEMINI_TILE)


def image_size(data: bytes) -> Size | None:
    """Return the pixels of a PNG, GIF, WebP or JPEG image from its header; None if they are missing there."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        return _size(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _size(int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    return _jpeg_size(data) if data.startswith(b"\xff\xd8") else None


def _size(width: int, height: int) -> Size | None:
    return Size(width, height) if width > 0 and height > 0 else None


_WEBP_HEADER = 30


def _webp_size(data: bytes) -> Size | None:
    """Read the size of a WebP image: https://developers.google.com/speed/webp/docs/riff_container."""
    match data[12:16]:
        case b"VP8 ":
            width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        case _:
            return None
    return _size(width, height) if len(data) >= _WEBP_HEADER else None


# Markers of JPEG (ITU T.81, B.1): fill bytes, markers without a length, the frame headers, and three markers in their
# range that are not frame headers.
_FILL, _BARE, _FRAMES, _NO_FRAMES = 0xFF, {0x01, *range(0xD0, 0xD9)}, range(0xC0, 0xD0), {0xC4, 0xC8, 0xCC}


def _jpeg_size(data: bytes) -> Size | None:
    """Find the frame header among the segments of a JPEG image."""
    at = 2
    while at + 9 <= len(data) and data[at] == _FILL:
        marker = data[at + 1]
        if marker in _FRAMES and marker not in _NO_FRAMES:
            return _size(int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big"))
        if marker == _FILL:
            at += 1
        else:
            at += 2 if marker in _BARE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
