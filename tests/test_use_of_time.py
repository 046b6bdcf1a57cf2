"""A run prints its use of time, and names the tests that take long without a docstring that gives the reason."""

import pytest

from tests import use_of_time

pytest_plugins = ["pytester"]

TESTS = '''
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_bare(number):
    sum(range(number * 1_000_000))

def test_explained():
    """Sum up a million numbers, since fewer show nothing."""
    sum(range(1_000_000))

class TestClass:
    def test_in_a_class(self):
        sum(range(1_000_000))
'''


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_long_test_without_a_docstring_is_named_once(pytester, monkeypatch, workers):
    monkeypatch.setattr(use_of_time, "_NEEDS_REASON_SECONDS", 0.0)
    pytester.makepyfile(test_long=TESTS)
    output = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "tests.use_of_time", "-n", workers).stdout
    named = output.str().partition("write a docstring with the reason")[2].splitlines()
    assert sorted(line.split()[-1] for line in named if "s of processor" in line) == [
        "test_long.py::TestClass::test_in_a_class",
        "test_long.py::test_bare",
    ]


def test_quick_tests_need_no_docstring(pytester):
    pytester.makepyfile(test_quick="def test_quick(): pass")
    output = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "tests.use_of_time").stdout.str()
    assert "write a docstring" not in output


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_twenty_longest_tests_and_the_time_to_collect_are_printed(pytester, workers):
    names = "abcdefghijklmnopqrstuvwxyz"
    lines = ["import time", *(f"def test_{name}(): time.sleep({name in 'az'} / 20)" for name in names)]
    pytester.makepyfile(test_many="\n".join(lines))
    run = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "tests.use_of_time", "-n", workers)
    longest, _, after = run.stdout.str().partition("the 20 longest:\n")[2].partition(" s of processor at most until")
    *tests, seconds = longest.splitlines()
    assert len(tests) == 20
    assert {line.rpartition("::")[2] for line in tests[:2]} == {"test_a", "test_z"}
    assert float(seconds) > 0
    assert after.startswith(" a worker has collected the tests")
