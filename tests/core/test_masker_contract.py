"""The contract of maskers passes a good masker, and each of its tests fails a masker that breaks it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest

from dagster_llm_batch.core.masks import Found, Masker
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.contracts import MaskerContract

PLANTED = {"C-12345 wrote to C-54321.": ["C-12345", "C-54321"], "Nothing here.": [], "\U0001f600 C-11111": ["C-11111"]}


class Customers:
    """Find customer numbers such as C-12345."""

    name = "customers-1"

    def find(self, text: str) -> Iterable[Found]:
        """Return each number."""
        return [Found(*found.span(), "customer") for found in re.finditer(r"C-\d{5}", text)]


class TestCustomers(MaskerContract):
    @pytest.fixture
    def masker(self) -> Masker:
        return Customers()

    @pytest.fixture
    def planted(self) -> Mapping[str, Sequence[str]]:
        return PLANTED


class Nameless(Customers):
    name = " "


class Blind(Customers):
    def find(self, text: str) -> Iterable[Found]:
        return [found for found in super().find(text) if not found.start]


class Forgetful(Customers):
    """Find a value only once."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def find(self, text: str) -> Iterable[Found]:
        found = [one for one in super().find(text) if text[one.start : one.end] not in self.seen]
        self.seen |= {text[one.start : one.end] for one in found}
        return found


class OneThread(Customers):
    """Find nothing in another thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find(self, text: str) -> Iterable[Found]:
        return super().find(text) if threading.get_ident() == self.thread else []


class Greedy(Customers):
    """Find the empty place at the end of a text."""

    def find(self, text: str) -> Iterable[Found]:
        return [Found(len(text), len(text) + 1, "customer")]


class Unpicklable(Customers):
    def __init__(self) -> None:
        self.lock = threading.Lock()


Check = Callable[..., None]


@pytest.mark.parametrize(
    ("bad", "test"),
    [
        (Nameless, MaskerContract.test_its_name_is_a_text_that_stays),
        (Blind, MaskerContract.test_planted_values_are_masked),
        (Forgetful, MaskerContract.test_a_text_is_masked_alike_each_time),
        (OneThread, MaskerContract.test_threads_share_a_masker),
        (Greedy, MaskerContract.test_any_text_can_be_masked),
        (Unpicklable, MaskerContract.test_a_pickled_masker_finds_the_same),
    ],
)
def test_a_bad_masker_fails(bad: type[Customers], test: Check) -> None:
    takes = (PLANTED,) if "planted" in test.__annotations__ else ()
    with pytest.raises((AssertionError, ConfigError, TypeError)):
        test(MaskerContract(), bad(), *takes)


def test_a_contract_without_planted_values_fails() -> None:
    with pytest.raises(AssertionError, match="at least one value"):
        MaskerContract().test_planted_values_are_masked(Customers(), {"Nothing here.": []})
