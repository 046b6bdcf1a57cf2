"""The ten-minute run chooses different cases of each test, and the same ones each time."""

import re
from pathlib import Path

import pytest

from tests.mutants.selection import choose_functions
from tests.sampled_cases import LEFT_OUT, choose_cases

pytest_plugins = ["pytester"]

FILE = """
import pytest

@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request):
    return request.param

@pytest.mark.parametrize("vendor", ["a", "b", "c"])
def test_of_a_ledger(ledger, vendor): ...

@pytest.mark.sample(4)
@pytest.mark.parametrize("vendor", ["a", "b", "c"])
def test_of_more(ledger, vendor): ...

@pytest.mark.sample()
@pytest.mark.parametrize("vendor", ["a", "b", "c"])
def test_of_all(ledger, vendor): ...

@pytest.mark.parametrize("number", range(9))
def test_that_needs_nothing(number, tmp_path): ...

def test_without_cases(ledger): ...

class TestOfAClass:
    @pytest.mark.parametrize("number", range(5))
    def test_in_it(self, ledger, number): ...
"""


def test_cases_are_taken_that_bring_new_values_before_those_that_repeat_some():
    cases = {(x, y): {("x", x), ("y", y)} for x in range(3) for y in range(3)}
    assert choose_cases(cases, 3) == {(0, 0), (1, 1), (2, 2)}
    assert len(choose_cases(cases, 5)) == 5
    assert choose_cases(cases, 100) == set(cases)
    assert choose_cases({}, 2) == set()


def _ran(pytester: pytest.Pytester) -> list[str]:
    return _ran_with(pytester, "tests.sampled_cases")


def _ran_with(pytester: pytest.Pytester, *plugins: str) -> list[str]:
    loaded = [word for plugin in plugins for word in ("-p", plugin)]
    result = pytester.runpytest_inprocess("-v", *loaded, "-p", "no:cacheprovider")
    assert result.ret == 0
    return [line.split("::", 1)[1].split(" ")[0] for line in result.outlines if " PASSED" in line]


def test_of_a_test_that_needs_more_than_pytest_two_cases_run_on_both_ledgers(pytester):
    pytester.makeini("[pytest]\nmarkers = sample: how many")
    pytester.makepyfile(FILE)
    ran = _ran(pytester)
    count = {name: sum(one.startswith(name) for one in ran) for name in dict.fromkeys(one.split("[")[0] for one in ran)}
    assert count == {
        "test_of_a_ledger": 2,
        "test_of_more": 4,
        "test_of_all": 6,
        "test_that_needs_nothing": 9,
        "test_without_cases": 2,
        "TestOfAClass::test_in_it": 2,
    }
    two = [one.partition("[")[2].rstrip("]").split("-") for one in ran if one.startswith("test_of_a_ledger")]
    assert {ledger for ledger, _ in two} == {"sqlite", "postgresql"}
    assert len({vendor for _, vendor in two}) == 2
    assert _ran(pytester) == ran


def test_the_ten_minutes_and_the_others_are_all_cases_each_once(pytester):
    marks = ["sample: how many", "slow: long", "journey: long and there", "simulation: draws"]
    pytester.makeini("[pytest]\nmarkers =\n" + "\n".join(f"    {mark}" for mark in marks))
    pytester.makepyfile(
        f"""{FILE}
@pytest.mark.slow
def test_slow(): ...

@pytest.mark.journey
@pytest.mark.slow
def test_journey(): ...

@pytest.mark.simulation
def test_simulation(): ...
"""
    )
    short, others = _ran_with(pytester, "tests.sampled_cases"), _ran_with(pytester, "tests.other_cases")
    assert sorted([*short, *others]) == sorted(_ran_with(pytester))
    assert short[0] == "test_journey"
    assert {"test_slow", "test_simulation"} <= set(others)


def test_functions_are_chosen_by_the_new_lines_that_they_execute_for_their_time():
    lines = {"long": {"a": 0b1111}, "two": {"a": 0b0011}, "same": {"a": 0b0011}, "other": {"b": 0b1}, "none": {}}
    seconds = {"long": 8.0, "two": 1.0, "same": 1.0, "other": 1.0, "none": 1.0, "journey": 2.0}
    assert choose_functions(lines, seconds, (), 1.0) == {"same"}
    assert choose_functions(lines, seconds, {"journey"}, 4.0) == {"journey", "other", "same"}
    assert choose_functions(lines, seconds, {"journey"}, 5.0) == {"journey", "other", "same", "two"}
    assert choose_functions(lines, seconds, (), 100.0) == {"long", "other", "same", "two"}
    assert choose_functions(lines, seconds, {"journey"}, 1.0) == {"journey"}


def test_a_line_counts_for_three_functions_and_less_each_time():
    lines = {name: {"a": 0b1} for name in "abcd"} | {"few": {"b": 0b1}}
    seconds = dict.fromkeys("abcd", 1.0) | {"few": 3.0}
    # The fourth function of a line brings nothing. A third of a line a second is less than half, more than a quarter.
    assert [sorted(choose_functions(lines, seconds, (), limit)) for limit in (1, 2, 5, 6, 100)] == [
        ["a"],
        ["a", "b"],
        ["a", "b", "few"],
        ["a", "b", "c", "few"],
        ["a", "b", "c", "few"],
    ]


def test_each_function_that_the_ten_minutes_leave_out_is_there():
    listed = LEFT_OUT.read_text(encoding="utf-8").splitlines()
    assert listed == sorted(set(listed))
    for name in listed:
        file, *owner, function = name.split("::")
        # A class may inherit its tests from a contract.
        definition = rf"class {owner[0]}\b" if owner else rf"(async )?def {function}\("
        text = Path(LEFT_OUT.parents[1], file).read_text(encoding="utf-8")
        assert re.search(f"^{definition}", text, re.MULTILINE), name
