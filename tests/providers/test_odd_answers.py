"""For any answer of a server, a provider's verb returns a valid value or raises one of our errors, in clean words."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from odd_answers import (
    NONSENSE,
    PROVIDERS,
    ROWS,
    VERBS,
    WEB_PAGE,
    Answer,
    RecordedProvider,
    is_clean,
    mutants,
    record_provider,
    storage,
)

from dagster_llm_batch.errors import AmbiguousError, ProviderError, TransientError
from dagster_llm_batch.types import BatchReport, BatchStatus, FindHints, Found, Outcome, StatusUnknown, Undecided

MUTANTS = 10
"""Of each answer."""
_MOST = 1 << 62
_OF_CLIENT, _OF_SERVER = 400, 500
# The most calls until the odd answer was given; on a busy machine, it may take several.
_TRIES = 5


@pytest.fixture(scope="module")
def stored() -> Iterator[Mapping[str, Any]]:
    with storage() as options:
        yield options


@pytest.fixture(scope="module", params=PROVIDERS)
def one(request: pytest.FixtureRequest, stored: Mapping[str, Any]) -> Iterator[RecordedProvider]:
    """Give a provider whose SDK makes each call once."""
    with record_provider(request.param, stored) as found:
        yield found


def _places(one: RecordedProvider) -> Iterator[tuple[str, int]]:
    """Yield each call that a verb makes. Claude on Vertex AI differs from Gemini there only in its rows."""
    for verb in VERBS if one.name != "vertex claude" else ("fetch", "respond"):
        for number in range(one.made.get(verb, 0)):
            yield verb, number


def _told(one: RecordedProvider, verb: str, number: int, odd: Answer) -> Any:
    """Return the verb's value or error after an odd answer to this call."""
    told: Any = None
    for _ in range(_TRIES):
        one.relay.replay(one.kept[verb], number, odd)
        try:
            told = one.verbs[verb]()
        except ProviderError as error:
            told = error
        if one.relay.has_been_odd:
            break
    return told


def _unclean(value: Any) -> list[str]:
    """List the parts of a value that a ledger, log or table cannot hold."""
    match value:
        case ProviderError():
            return _unclean(str(value))
        case str():
            return [] if is_clean(value) else [f"unclean: {value!a}"]
        case bytes() | bool() | None:
            return []
        case int():
            return [] if abs(value) < _MOST else [f"too large: {value}"]
        case datetime():
            fits = value.tzinfo is not None and 1900 < value.year < 2300
            return [] if fits else [f"no time: {value}"]
        case BatchReport() | Found() | StatusUnknown() | Undecided():
            return [said for part in astuple(value) for said in _unclean(part)]
        case Mapping():
            return [said for pair in value.items() for part in pair for said in _unclean(part)]
        case list() | tuple():
            return [said for part in value for said in _unclean(part)]
        case _:
            return []


def _wrong(one: RecordedProvider, verb: str, number: int, odd: Answer, told: Any) -> str | None:
    """Return the reason why a verb must not give this after nonsense, or None."""
    truth, is_error = one.truth[verb], isinstance(told, ProviderError)
    match verb:
        case "submit":
            is_create = number == one.made[verb] - 1
            is_no = _OF_CLIENT <= odd.status < _OF_SERVER
            if is_create and not is_no and not isinstance(told, AmbiguousError):
                return "a batch that perhaps exists was taken for certain"
            if is_create and is_no and not is_error:
                return "no batch was made"
        case "find" if not is_error and told != truth and not isinstance(told, StatusUnknown | Undecided):
            return "nonsense was read as the lack of a batch"
        case "poll one" | "poll many" if is_error and not isinstance(told, TransientError):
            return "a poll that can be tried again was taken for final"
        case "poll one" | "poll many" if not is_error:
            changed = [report for key, report in told.items() if report != truth[key]]
            return (
                f"another status: {changed[0].status}"
                if any(r.status is not BatchStatus.RUNNING for r in changed)
                else None
            )
        case "fetch" if not is_error and not set(told) <= set(truth):
            return "what is no result was given as one"
        case "cancel" if not is_error:
            return "a batch that runs was taken for canceled"
        case "respond" if not is_error:
            result = one.provider.codec(one.spec).decode(told)
            if result.custom_id != "n-0" or result.outcome is Outcome.SUCCEEDED:
                return f"not an answer of the row: {result}"
        case _:
            pass
    return None


def test_nonsense_is_never_taken_for_an_answer(one: RecordedProvider) -> None:
    found = []
    for verb, number in _places(one):
        for odd in NONSENSE:
            # On a busy machine, a call that its client abandoned can come late, and take the odd answer from the next
            # one. A real error comes each time.
            for _ in range(_TRIES):
                told = _told(one, verb, number, odd)
                problems = _unclean(told) + ([wrong] if (wrong := _wrong(one, verb, number, odd, told)) else [])
                if not problems:
                    break
            found += [f"{verb}, call {number}, {odd.name}: {problem} ({told!r:.200})" for problem in problems]
    assert not found, "\n".join(found)


def test_an_answer_with_odd_values_gives_clean_values_or_one_of_our_errors(one: RecordedProvider) -> None:
    found = []
    for verb, number in _places(one):
        seed = zlib.crc32(f"{one.name} {verb} {number}".encode())
        for odd in mutants(one.kept[verb][number].answer, seed, MUTANTS):
            told = _told(one, verb, number, odd)
            if verb == "respond" and isinstance(told, bytes):  # the content of a row belongs to the reader
                assert one.provider.codec(one.spec).decode(told).custom_id in ("n-0", None)
            if verb.startswith("poll") and isinstance(told, Mapping):
                assert set(told) <= set(one.truth[verb])
                assert all(key == report.batch_id for key, report in told.items())
            found += [f"{verb}, call {number}, {odd.name}: {problem}" for problem in _unclean(told)]
    assert not found, "\n".join(found)


def test_a_list_that_gives_one_page_again_and_again_ends_and_what_is_on_it_is_found(one: RecordedProvider) -> None:
    kept = [
        # pages of results are another list
        call if "/results" in call.path else replace(call, answer=_with_more(call.answer))
        for call in one.kept["find"]
    ]
    one.relay.replay(kept, 0, kept[0].answer)
    assert one.verbs["find"]() == one.truth["find"]
    found = one.provider.find("another", FindHints(datetime.now(UTC) - timedelta(hours=1), ROWS + 1, "other"))
    assert isinstance(found, StatusUnknown)
    assert "again and again" in found.reason


def _with_more(answer: Answer) -> Answer:
    """Return a page of a list with the vendor's mark that more pages follow; return other answers unchanged."""
    try:
        page = json.loads(answer.body)
    except ValueError:
        return answer
    if not any(isinstance(value, list) for value in page.values()):
        return answer
    page |= {"has_more": True, "nextPageToken": "again", "nextToken": "again", "total": 1_000_000}
    return replace(answer, body=json.dumps(page).encode(), headers={"content-type": "application/json"})


def test_a_web_page_is_named_as_one_with_what_to_do(one: RecordedProvider) -> None:
    last = {verb: one.made[verb] - 1 for verb in ("submit", "poll one", "cancel", "respond") if verb in one.made}
    for verb, number in last.items():
        said = str(_told(one, verb, number, WEB_PAGE))
        assert "a web page (text/html)" in said, f"{verb}: {said}"
        assert "base_url" in said, f"{verb}: {said}"
