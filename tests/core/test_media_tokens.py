"""Images by the vendors' formulas, with figures from their documents or computed by hand; sizes from real files."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image as Picture

from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.core.media_tokens import InputTokens, Size, image_size, media_tokens
from dagster_llm_batch.core.token_counts import InputCounter
from dagster_llm_batch.types import Image, RequestSpec
from tests.tables import table


def file_of(kind: str, size: tuple[int, int], **options: Any) -> bytes:
    file = io.BytesIO()
    Picture.new("RGB", size, (200, 30, 30)).save(file, kind, **options)
    return file.getvalue()


def header_of(width: int, height: int) -> bytes:
    """Return the start of a PNG file of this size, without drawing it."""
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"comment": b"x" * 5_000, "exif": b"Exif\0\0" + b"\0" * 4_000}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0II*\0"}),
    ],
)
def test_the_size_is_in_the_header(kind: str, options: dict[str, Any]) -> None:
    assert image_size(file_of(kind, (317, 59), **options)) == Size(317, 59)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "WEBP"])
def test_half_a_file_has_no_size_or_its_own(kind: str) -> None:
    data = file_of(kind, (317, 59))
    assert {image_size(data[:length]) for length in range(len(data))} <= {None, Size(317, 59)}
    assert image_size(b"") is image_size(b"BM" + b"\0" * 60) is None


@table(
    ("book", "model", "size", "tokens"),
    [
        # Claude: ceil(w / 28) * ceil(h / 28); the figures of Anthropic's page.
        ("anthropic", "claude-haiku-4-5", (200, 200), 64),
        ("anthropic", "claude-haiku-4-5", (1_920, 1_080), 1_560),
        ("anthropic", "claude-opus-4-7", (1_920, 1_080), 2_691),
        ("anthropic", "claude-sonnet-5", (3_840, 2_160), 4_784),
        ("aws", "us.anthropic.claude-haiku-4-5-20251001-v1:0", (200, 200), 64),
        # Tiles: 1,024 by 1,024 becomes 768 by 768, four tiles; 2,048 by 4,096 becomes 768 by 1,536, six.
        ("openai", "gpt-4o", (1_024, 1_024), 85 + 4 * 170),
        ("openai", "gpt-4o", (2_048, 4_096), 85 + 6 * 170),
        ("openai", "gpt-4o-mini", (1_024, 1_024), 2_833 + 4 * 5_667),
        ("openai", "gpt-4o", (100, 100), 85 + 170),
        ("openai", "gpt-5", (1_024, 1_024), 70 + 4 * 140),
        ("openai", "o3", (1_024, 1_024), 75 + 4 * 150),
        # Patches: 1,024 by 1,024 is 1,024 of them; 1,800 by 2,400 becomes 1,056 by 1,408, 1,452 of them.
        ("openai", "gpt-4.1-mini", (1_024, 1_024), 1_659),
        ("openai", "gpt-4.1-mini", (1_800, 2_400), 2_353),
        ("openai", "gpt-5-nano", (1_024, 1_024), 2_520),
        ("openai", "o4-mini", (1_800, 2_400), 2_498),
        ("openai", "gpt-5.6", (3_200, 3_200), 12_000),
        # Gemini 2.5: tiles of 768 pixels, one for a small image. Gemini 3: one figure for all.
        ("google", "gemini-2.5-flash", (384, 384), 258),
        ("google", "gemini-2.5-flash", (1_000, 1_000), 4 * 258),
        ("google", "gemini-3.5-flash", (4_000, 3_000), 1_120),
    ],
)
def test_an_image_counts_by_the_vendors_formula(book: str, model: str, size: tuple[int, int], tokens: int) -> None:
    counted = media_tokens(book, model, {}, Image("image/png", header_of(*size)))
    assert counted == InputTokens(tokens, tokens)


@pytest.mark.parametrize(
    ("book", "model", "most"),
    [
        ("anthropic", "claude-haiku-4-5", 1_568),
        ("anthropic", "claude-opus-5", 4_784),
        ("openai", "gpt-4o-mini", 2_833 + 8 * 5_667),
        ("openai", "gpt-5-nano", 3_779),
        ("openai", "gpt-5.6", None),
        ("google", "gemini-3.5-flash", 1_120),
        ("google", "gemini-2.5-flash", None),
        ("mistral", "pixtral-large", None),
    ],
)
def test_without_a_size_the_bound_is_the_vendors_most(book: str, model: str, most: int | None) -> None:
    counted = media_tokens(book, model, {}, Image(url="https://pictures.example/1"))
    assert counted.bound == most
    assert 0 < counted.expected <= (most or 1_000_000)


@pytest.mark.parametrize(
    "model", ["claude-haiku-4-5", "claude-opus-5", "gpt-4o", "gpt-4o-mini", "gpt-5-nano", "o4-mini", "gpt-5.4"]
)
def test_no_size_exceeds_the_vendors_most(model: str) -> None:
    book = "anthropic" if "claude" in model else "openai"
    most = media_tokens(book, model, {}, Image(url="https://pictures.example/1")).bound
    assert most is not None
    for width in (1, 27, 500, 768, 769, 1_568, 2_048, 2_577, 8_000):
        for height in (1, 31, 512, 1_000, 2_049, 8_000):
            counted = media_tokens(book, model, {}, Image("image/png", header_of(width, height)))
            assert 0 < counted.expected == (counted.bound or 0) <= most, (width, height)


def test_geminis_resolution_is_what_the_caller_asks_for() -> None:
    image = Image("image/png", header_of(2_000, 2_000))
    low = {"media_resolution": "MEDIA_RESOLUTION_LOW"}
    assert media_tokens("google", "gemini-3.5-flash", low, image) == InputTokens(280, 280)
    assert media_tokens("google", "gemini-2.5-flash", {"mediaResolution": "MEDIA_RESOLUTION_LOW"}, image).bound == 64


@pytest.mark.parametrize("name", ["a.pdf", "a.mp3", "a.mp4?x=1"])
def test_a_document_or_a_film_by_its_address_has_no_bound(name: str) -> None:
    counted = media_tokens("google", "gemini-3.5-flash", {}, Image(url=f"https://files.example/{name}"))
    assert counted.expected > 1_000
    assert counted.bound is None


@pytest.mark.parametrize(
    ("model", "name", "resolution", "tokens"),
    [
        # Ten pages; a minute of sound, 32 tokens a second; a minute of film, a frame a second, and its sound.
        ("gemini-3.5-flash", "a.pdf", None, 10 * 560),
        ("gemini-3.5-flash", "a.pdf", "MEDIA_RESOLUTION_HIGH", 10 * 1_120),
        ("gemini-2.5-flash", "a.pdf", None, 10 * 258),
        ("gemini-3.5-flash", "a.mp3", None, 60 * 32),
        ("gemini-2.5-flash", "a.wav", "MEDIA_RESOLUTION_LOW", 60 * 32),
        ("gemini-3.5-flash", "a.mp4", None, 60 * (70 + 32)),
        ("gemini-3.5-flash", "a.mp4", "MEDIA_RESOLUTION_HIGH", 60 * (280 + 32)),
        ("gemini-2.5-flash", "a.mp4", None, 60 * (258 + 32)),
    ],
)
def test_pages_and_seconds_count_by_geminis_formulas(
    model: str, name: str, resolution: str | None, tokens: int
) -> None:
    params = {} if resolution is None else {"media_resolution": resolution}
    counted = media_tokens("google", model, params, Image(url=f"https://files.example/{name}"))
    assert counted == InputTokens(tokens, None)


def test_a_document_of_any_length_is_bounded_by_what_the_model_takes() -> None:
    request = make_request(None, "Sum up.", (Image(url="https://files.example/a.pdf"),))
    counts = InputCounter("google", RequestSpec(model="gemini-3.5-flash"), 1_048_576).count([request])
    assert counts.bounds == [1_048_576]
    assert 5_600 < counts.expected[0] < 5_700
