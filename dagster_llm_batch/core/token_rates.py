"""Rates for counting tokens: tokens of a character, by its kind, its script and the character before it.

They are fitted to real tokenizers. `token_counts` looks characters up in them.
"""

from __future__ import annotations

__all__ = ["BEYOND", "END_OF_ASCII", "KINDS", "KIND_OF", "PAIRS", "SCRIPTS", "TOKENIZERS", "UNMEASURED"]

# The tokenizers that the rates below are fitted to, in the order of their columns.
TOKENIZERS = ("o200k", "claude", "gemma", "llama")

# Kinds of ASCII characters: lower case, upper case, digit, space, other white space and control, punctuation. The
# seventh is all that is not ASCII.
_LOWER, _UPPER, _DIGIT, _SPACE, _BREAK, _MARK, BEYOND = range(7)
KINDS = 6

END_OF_ASCII = 128


def _kind_of_each_byte() -> bytes:
    kinds = bytearray([_BREAK] * 33 + [_MARK] * 95 + [BEYOND] * 128)
    for first, last, kind in ((b"a", b"z", _LOWER), (b"A", b"Z", _UPPER), (b"0", b"9", _DIGIT), (b" ", b" ", _SPACE)):
        kinds[first[0] : last[0] + 1] = bytes([kind]) * (last[0] - first[0] + 1)
    return bytes(kinds)


KIND_OF = _kind_of_each_byte()
"""The kind of each byte."""

# Tokens of an ASCII character, by the kind of the one before it (rows) and its own (columns).
#
# Fitted on 2026-11-27 by non-negative least squares to 1,045 pieces of 200 to 400 characters, and checked on 349
# others: the Universal Declaration of Human Rights in 40 languages, Python, CSV with UUIDs and times, JSON, URLs,
# base64, hex, digits, emoji. The tokenizers: OpenAI's o200k_base; Anthropic's of 2023, its only published one; Gemma
# 3's, for Gemini; Llama 3.1's, for all others. tests/core/token_counts.json has texts with counts.
PAIRS: dict[str, tuple[tuple[float, ...], ...]] = {
    "o200k": (
        (0.07, 1.41, 0.19, 0.00, 0.19, 0.00),
        (0.51, 0.23, 0.68, 0.00, 0.00, 0.98),
        (1.65, 1.83, 0.33, 0.00, 1.26, 0.00),
        (0.72, 0.62, 1.62, 0.03, 0.31, 0.38),
        (0.20, 0.00, 0.00, 1.53, 0.00, 2.92),
        (1.23, 0.00, 1.69, 1.13, 0.18, 0.20),
        (0.00, 1.17, 0.03, 0.80, 0.00, 0.58),
    ),
    "claude": (
        (0.07, 1.31, 0.07, 0.00, 0.00, 0.37),
        (0.46, 0.22, 0.54, 0.00, 0.03, 1.87),
        (1.68, 2.46, 0.42, 0.00, 2.22, 0.07),
        (0.66, 1.01, 0.52, 0.03, 0.00, 0.00),
        (0.82, 0.00, 0.00, 0.50, 0.32, 2.67),
        (1.46, 0.00, 1.31, 1.16, 0.84, 0.07),
        (0.00, 0.98, 0.00, 1.30, 0.00, 0.00),
    ),
    "gemma": (
        (0.07, 1.24, 0.42, 0.00, 0.45, 0.30),
        (0.49, 0.19, 0.75, 0.00, 0.50, 1.42),
        (1.66, 1.89, 0.99, 0.00, 1.64, 0.22),
        (0.71, 0.62, 1.49, 0.03, 0.00, 0.29),
        (0.82, 0.00, 0.00, 1.47, 0.00, 2.07),
        (1.47, 0.00, 1.70, 0.91, 1.03, 0.23),
        (0.00, 0.81, 0.00, 0.54, 0.00, 0.84),
    ),
    "llama": (
        (0.08, 1.44, 0.00, 0.00, 0.09, 0.00),
        (0.59, 0.17, 0.24, 0.00, 0.00, 1.28),
        (1.83, 2.52, 0.33, 0.68, 1.24, 0.00),
        (0.64, 0.88, 0.94, 0.04, 0.09, 0.33),
        (0.14, 0.00, 0.00, 1.29, 0.00, 2.52),
        (1.24, 0.00, 1.58, 1.37, 0.00, 0.17),
        (0.00, 1.47, 0.00, 0.86, 0.00, 1.08),
    ),
}

# Tokens of a character beyond ASCII, by its script: the first and last code point, and the rates of the tokenizers.
# Both are multiples of 16.
SCRIPTS = (
    (0x0080, 0x0300, (1.56, 3.43, 1.49, 1.91)),  # Latin with accents
    (0x0300, 0x0370, (0.84, 1.50, 0.22, 0.42)),  # accents by themselves
    (0x0370, 0x0400, (0.26, 1.12, 0.31, 0.26)),  # Greek
    (0x0400, 0x0530, (0.18, 0.49, 0.21, 0.19)),  # Cyrillic
    (0x0530, 0x0590, (0.18, 1.98, 0.48, 1.71)),  # Armenian
    (0x0590, 0x0600, (0.28, 0.81, 0.42, 0.98)),  # Hebrew
    (0x0600, 0x0780, (0.18, 0.86, 0.25, 0.20)),  # Arabic
    (0x0900, 0x0980, (0.17, 1.09, 0.18, 0.44)),  # Devanagari
    (0x0980, 0x0A00, (0.26, 1.88, 0.17, 1.29)),  # Bengali
    (0x0A00, 0x0A80, (0.42, 2.98, 0.51, 1.77)),  # Gurmukhi
    (0x0A80, 0x0B00, (0.25, 2.96, 0.31, 1.84)),  # Gujarati
    (0x0B80, 0x0C00, (0.28, 1.99, 0.20, 1.45)),  # Tamil
    (0x0C00, 0x0C80, (0.41, 2.25, 0.39, 1.89)),  # Telugu
    (0x0C80, 0x0D00, (0.33, 2.22, 0.35, 1.89)),  # Kannada
    (0x0D00, 0x0D80, (0.29, 2.33, 0.28, 1.74)),  # Malayalam
    (0x0D80, 0x0E00, (0.50, 1.68, 0.41, 2.01)),  # Sinhala
    (0x0E00, 0x0E80, (0.40, 1.78, 0.32, 0.43)),  # Thai
    (0x0E80, 0x0F00, (1.87, 3.05, 0.56, 2.00)),  # Lao
    (0x0F00, 0x1000, (1.51, 2.97, 0.69, 2.07)),  # Tibetan
    (0x1000, 0x10A0, (0.50, 0.90, 0.39, 2.04)),  # Burmese
    (0x10A0, 0x1100, (0.20, 1.21, 0.34, 2.01)),  # Georgian
    (0x1200, 0x13A0, (2.00, 2.96, 0.82, 2.95)),  # Ethiopic
    (0x1780, 0x1800, (0.60, 2.98, 0.45, 1.65)),  # Khmer
    (0x1E00, 0x2000, (0.50, 0.70, 0.49, 0.50)),  # Vietnamese
    (0x2000, 0x2070, (0.60, 0.80, 0.60, 0.60)),  # dashes and quotation marks
    (0x3000, 0x3100, (0.90, 1.01, 0.46, 0.64)),  # kana
    (0x3400, 0xA000, (0.70, 1.05, 0.62, 0.75)),  # Han: less than of the Declaration, more than of everyday messages
    (0xAC00, 0xD7B0, (0.46, 1.09, 0.50, 0.42)),  # Hangul
    (0xFF00, 0xFFF0, (0.80, 0.90, 0.80, 0.80)),  # full width
    (0x1F000, 0x1FB00, (2.19, 2.57, 1.65, 2.81)),  # emoji
)

# Scripts that were not measured are ones that tokenizers know least: nearly a token a byte.
UNMEASURED = 2.5
