"""The check of plain English finds each pattern, reads prose only, and fails a room above its limit."""

from pathlib import Path

import pytest

from tests.prose.__main__ import LIMITS, ROOT, check_rooms, group_by_room, lower_limits, main, read_limits
from tests.prose.patterns import PATTERNS, find_patterns
from tests.prose.texts import read_sentences
from tests.tables import table

EXAMPLES = [
    line.split(": ", 1)
    for line in Path(__file__).with_name("examples.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


@table(("pattern", "sentence"), EXAMPLES)
def test_a_sentence_has_its_pattern_and_no_other(pattern, sentence):
    assert find_patterns(sentence) == ([] if pattern == "-" else [pattern])


def test_every_pattern_has_an_example():
    assert {*PATTERNS, "long"} <= {pattern for pattern, _ in EXAMPLES}


@pytest.mark.parametrize(
    ("summary", "is_one"),
    [("The rows of a table.", True), ("Rows of a table.", True), ("Return rows of a table.", False)],
)
def test_a_functions_docstring_begins_with_a_verb(summary, is_one):
    assert ("not_imperative" in find_patterns(summary, is_summary=True)) is is_one
    assert "not_imperative" not in find_patterns(summary)


MODULE = '''"""The module has one docstring here."""

import os  # for the path of this file

# a comment of
# two lines stands here
LIMIT = 3  # type: ignore[assignment]
SQL = "SELECT key FROM rows where a and b and c"


class Kept:
    """Rows of a table are kept."""

    @property
    def rows(self):
        """The rows that are kept."""
        raise ValueError(f"there are {len(self.all)} rows in 'it', "
                         "and one is too long")

    def count(self):
        """The rows that count here.

        Second paragraph of the docstring.
            code_of_an_example(without=prose)
        """
        return {"key": "a-b"}  # noqa: X001
'''


def test_a_module_has_docstrings_comments_and_literals_that_are_text(tmp_path):
    (tmp_path / "module.py").write_text(MODULE)
    assert sorted(read_sentences(tmp_path / "module.py")) == [
        (1, "The module has one docstring here.", False),
        (3, "for the path of this file", False),
        (5, "a comment of two lines stands here", False),
        (12, "Rows of a table are kept.", False),
        (16, "The rows that are kept.", False),
        (17, "there are X rows in 'it', and one is too long", False),
        (21, "The rows that count here.", True),
        (23, "Second paragraph of the docstring. code_of_an_example(without=prose)", False),
    ]


PAGE = """# A heading is not read here

The first sentence is here. The second has `code` and [a link](https://example.org/a).

```sh
a command in a block is not read
```

| Cell of a table | Another cell of it |
| --- | --- |
- An item of a list
"""


def test_a_page_has_paragraphs_items_and_cells_without_code(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    assert [(line, text) for line, text, _ in read_sentences(tmp_path / "page.md")] == [
        (3, "The first sentence is here."),
        (3, "The second has X and a link."),
        (9, "Cell of a table"),
        (9, "Another cell of it"),
        (11, "An item of a list"),
    ]


def test_a_room_above_its_limit_fails_and_its_sentences_are_printed(tmp_path, capsys):
    (tmp_path / "docs" / "how-to").mkdir(parents=True)
    (tmp_path / "README.md").write_text("The page is short.\n")
    (tmp_path / "docs" / "how-to" / "page.md").write_text("The ledger says what was sent.\n")
    limits = tmp_path / "limits.txt"
    limits.write_text("docs/how-to 334\n")
    assert check_rooms(tmp_path, limits) == 0
    limits.write_text("docs/how-to 333\n")
    assert check_rooms(tmp_path, limits) == 1
    assert "docs/how-to/page.md:1: The ledger says what was sent. [free_relative, speaking_things]" in (
        capsys.readouterr().out
    )


def test_a_room_without_a_limit_has_the_goal(tmp_path):
    (tmp_path / "limits.txt").write_text("")
    # 8 words of two sentences with a hit, and 192 others: 10 per 1,000; or 184 others
    for others, failed in (("The table has one row for each label. " * 24, 0), ("It is one row. " * 46, 1)):
        (tmp_path / "README.md").write_text(f"{others}The ledger says so. The sensor says so.\n")
        assert check_rooms(tmp_path, tmp_path / "limits.txt") == failed


def test_one_hit_is_allowed_in_a_room_of_a_few_words(tmp_path):
    (tmp_path / "limits.txt").write_text("")
    (tmp_path / "README.md").write_text("The ledger says so.\n")
    assert check_rooms(tmp_path, tmp_path / "limits.txt") == 0
    (tmp_path / "README.md").write_text("The ledger says so. The sensor says so.\n")
    assert check_rooms(tmp_path, tmp_path / "limits.txt") == 1


def test_limits_fall_to_the_figure_and_never_rise_and_a_room_at_the_goal_needs_none():
    text = "# why\ndocs 20\nREADME.md 30\nAGENTS.md 40\nfolder/removed 30\ntests/core 40\n"
    rates = {"docs": 25.0, "README.md": 12.3, "AGENTS.md": 9.9, "tests/core": 11.5}
    assert lower_limits(text, rates) == "# why\nREADME.md 13\ndocs 20\n"


def test_the_lowest_limit_counts_where_a_merge_left_two():
    assert read_limits("# why\ndocs 20\ndocs 18\ndocs 25\n") == {"docs": 18}


def test_each_limit_is_of_a_room_that_is_there():
    # the tests of the wheel run in a copy without the package
    named = {room for room in read_limits(LIMITS.read_text(encoding="utf-8")) if (ROOT / Path(room).parts[0]).exists()}
    assert named <= set(group_by_room(ROOT))


def test_a_named_file_shows_its_sentences_and_its_figure(tmp_path, capsys):
    (tmp_path / "page.md").write_text("The ledger says so. The sensor polls it.\n")
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "page.md:1: The ledger says so. [speaking_things]" in shown
    assert "125.0 hits per 1,000 words in      8 words" in shown
