"""Secrets of any alphabet, in any form in which a server may write them: `Mask` leaves no part of them."""

from __future__ import annotations

import base64
import html
import json
import string
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dagster_llm_batch.providers.secrets import Mask

UNRESERVED = string.ascii_letters + string.digits + "-_.~"
BASE64 = string.ascii_letters + string.digits + "+/="
ALPHABETS = {
    "hex": "0123456789abcdef",
    "base64": BASE64,
    "addresses": UNRESERVED,
    "printable": string.ascii_letters + string.digits + string.punctuation,
    "only punctuation": string.punctuation,
    "any language": "aä€語🔑/+%\\\"'&<",
}
SECRETS = st.one_of([st.text(alphabet, min_size=16, max_size=300) for alphabet in ALPHABETS.values()])

# An AWS session token: the slash stands behind its 16th character.
TOKEN = "IQoJb3JpZ2luX2VjEJr/x7Vd+aWKmQ3pLs90Tz=="


def _basic(secret: str) -> str:
    return base64.b64encode(f"user:{secret}".encode()).decode()


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "quoted": lambda secret: quote(secret, safe=""),
    "quoted as a path": quote,
    "quoted as a form": quote_plus,
    "quoted in lower case": lambda secret: "".join(
        char if char in UNRESERVED else "".join(f"%{octet:02x}" for octet in char.encode()) for char in secret
    ),
    "quoted twice": lambda secret: quote(quote(secret, safe=""), safe=""),
    "JSON": lambda secret: json.dumps(secret)[1:-1],
    "JSON of letters": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
    "JSON with escaped slashes": lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/"),
    "JSON within JSON": lambda secret: json.dumps(json.dumps(secret)[1:-1])[1:-1],
    "HTML": html.escape,
    "Basic": _basic,
    "Basic without a user": lambda secret: base64.b64encode(f":{secret}".encode()).decode(),
    "Basic as a user": lambda secret: base64.b64encode(f"{secret}:".encode()).decode(),
    "Base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "Base64 of addresses": lambda secret: base64.urlsafe_b64encode(f"me:{secret}".encode()).decode(),
    "Basic, quoted": lambda secret: quote(_basic(secret), safe=""),
    "Basic in JSON": lambda secret: _basic(secret).replace("/", "\\/"),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40)
@given(secret=SECRETS)
@example(secret=TOKEN)
@example(secret="a" * 16 + "/" + "b" * 16)
def test_a_secret_is_masked_to_its_last_character_in_each_form(form: str, secret: str) -> None:
    written = FORMS[form](secret)
    mask = Mask([secret])
    assert mask.text(f"You sent §{written}§ here.") == "You sent §***§ here."
    assert mask.line(f'{{"said":"§{written}§"}}\n'.encode()) == '{"said":"§***§"}\n'.encode()


@settings(max_examples=40)
@given(secret=SECRETS, first=st.sampled_from(sorted(FORMS)), second=st.sampled_from(sorted(FORMS)))
@example(secret=TOKEN, first="plain", second="quoted")
def test_each_form_of_a_secret_is_masked_beside_another(secret: str, first: str, second: str) -> None:
    said = f"§{FORMS[first](secret)}§ §{FORMS[second](secret)}§"
    assert Mask([secret]).text(said) == "§***§ §***§"
    assert Mask([secret]).line(said.encode()).decode() == "§***§ §***§"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "quoted", "JSON", "Base64"])
@settings(max_examples=40)
@given(secret=SECRETS, share=st.floats(0, 1), end=st.sampled_from(["", "…"]))
@example(secret=TOKEN, share=0.95, end="…")
def test_a_secret_is_masked_also_where_a_text_was_cut_in_one_of_its_escapes(
    form: str, secret: str, share: float, end: str
) -> None:
    """It cuts each form of a secret at each character."""
    # Adjacent backslashes count as one character, and Base64 drops its padding.
    assume(not set(secret[:7]) & set("\\="))
    written = FORMS[form](secret)
    # six characters suffice to recognize it
    least = len(FORMS[form](secret[:6]).rstrip("="))
    cut = written[: least + int(share * (len(written) - 1 - least))]
    assert Mask([secret]).text(f"You sent §{cut}{end}").removesuffix("…") == "You sent §***"


@given(text=st.text(st.characters(exclude_characters="xyz"), max_size=200))
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    mask = Mask(["xyz" * 6])
    line = text.encode("utf-8", "surrogatepass")
    assert mask.text(text) is text
    assert mask.line(line) is line
