"""Requests, stored files, labels and costs are the same as before, byte for byte (format: `tests/golden/page.py`).

After an intended change, run `python -m tests.golden --write`, and read git's diff of tests/golden before you commit.
"""

from __future__ import annotations

import pytest

from tests.golden.cases import CASES, Servers
from tests.golden.golden import FILES, difference, golden
from tests.golden.page import Page


@pytest.fixture(scope="module")
def servers():
    running = Servers()
    yield running
    running.close()


JOURNEYS = [name for name in CASES if name.startswith("journey-")]


# Separate tests, so that the ten-minute run has some of both.
@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_asks_stores_lands_and_pays_what_its_golden_file_has(name, tmp_path, servers):
    shown = difference(name, golden(name), CASES[name](tmp_path, servers).encode())
    assert not shown, shown


@pytest.mark.parametrize("name", [name for name in CASES if name not in JOURNEYS])
def test_replayed_answers_are_read_as_in_their_golden_file(name, tmp_path, servers):
    shown = difference(name, golden(name), CASES[name](tmp_path, servers).encode())
    assert not shown, shown


def test_each_golden_file_has_a_case():
    assert {path.stem for path in FILES.glob("*.txt")} == set(CASES)


def test_a_difference_is_shown_where_it_is_and_says_how_to_write_the_file_anew():
    then, now = (f"== a\nsame\n== b\n{'x' * 300}{end}\nsame\n".encode() for end in ("old", "new"))
    shown = difference("case", then, now)
    assert "in == b" in shown
    assert f"- …{'x' * 60}old" in shown
    assert f"+ …{'x' * 60}new" in shown
    assert "python -m tests.golden --write" in shown
    assert difference("case", then, then) == ""


def test_request_lines_can_be_put_together_again_from_a_page():
    ids = [f"r{n:016x}-{n:040x}" for n in range(3)]
    lines = [f'{{"id":"{one}","body":{{"say":"{text}"}}}}\n' for one, text in zip(ids, ("", 'a"b', "aa"), strict=True)]
    page = Page()
    page.write_requests("some", lines)
    page.write_requests("one more", lines[1:])
    import json

    _, around, *middles = page.text.split("\n")[:5]
    before, after, end = json.loads(around)["each"]
    pairs = [line.split(" ", 1) for line in middles]
    assert [f"{before}{one}{after}{middle}{end}" for one, middle in pairs] == lines
    assert '{"each":"as in some"}' in page.text
