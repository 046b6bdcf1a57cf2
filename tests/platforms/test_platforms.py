"""Ordinary platforms work in combination: every property of one dataset holds for any set of datasets.

A platform is a value of each factor (`factors`). Those that run cover pairs of values, and all pairs under DLB_EXPLORE.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.platforms.cases import CASES, REFUSED
from tests.platforms.journey import Servers
from tests.platforms.oracle import problems_of, refusal_of
from tests.platforms.pairs import all_pairs, pairs_of, platforms
from tests.platforms.platform_value import Platform
from tests.platforms.sample import SEED, Sample, count_of_sample, summary

ServersFor = Callable[[str], Servers]
SetVariable = Callable[[str, str | None], None]


def run(platform: Platform, folder: Path, servers: ServersFor, set_variable: SetVariable) -> None:
    """Take a platform through its way. Each problem fails the test, with the command that repeats it."""
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    problems = problems_of(platform, folder, servers(platform["ledger"]), set_variable)
    if problems:
        told = "\n".join(f"- {problem}" for problem in problems)
        command = f".venv/bin/python -m tests.platforms {shlex.quote(str(platform))}"
        pytest.fail(f"{told}\n\n{platform.described()}\n\nAgain: {command}", pytrace=False)


@pytest.mark.sample
@pytest.mark.parametrize("turn", range(count_of_sample()))
def test_a_platform_loads_lands_every_row_once_bills_every_request_once_and_is_predicted(
    turn: int,
    tmp_path: Path,
    sample: Sample,
    servers: ServersFor,
    set_variable: SetVariable,
    record_property: Callable[..., None],
) -> None:
    """Plan, send, materialize and evaluate the datasets of a platform in Dagster."""
    with sample.next_platform() as taken:
        if taken is None:
            pytest.skip("no platform is left, or none fits DLB_PLATFORM_SECONDS any more")
        record_property("platform", str(taken.platform))
        try:
            run(taken.platform, tmp_path / f"platform-{turn}", servers, set_variable)
        finally:
            record_property("platform_seconds", taken.used())


@pytest.mark.sample(4)
@pytest.mark.parametrize("text", CASES.values(), ids=[name.replace(" ", "_") for name in CASES])
def test_a_platform_that_failed_once_works(
    text: str, tmp_path: Path, servers: ServersFor, set_variable: SetVariable
) -> None:
    """Plan, send, materialize and evaluate the datasets of a platform in Dagster."""
    run(Platform.parse(text), tmp_path / "platform-case", servers, set_variable)


@pytest.mark.sample
@pytest.mark.parametrize(("text", "word"), REFUSED.items())
def test_what_cannot_work_is_refused_by_its_reason_before_a_row_is_sent(
    text: str, word: str, tmp_path: Path, servers: ServersFor, set_variable: SetVariable
) -> None:
    refusal = refusal_of(Platform.unchecked(text), tmp_path / "platform-refused", servers("sqlite"), set_variable)
    assert word in refusal
    assert "Traceback" not in refusal


def test_a_sample_takes_the_first_platforms_in_their_order_and_no_more_than_fit_the_time_by_what_they_used(
    tmp_path: Path,
) -> None:
    one, other = (Sample(tmp_path / "used.json", seconds=90) for _ in range(2))
    assert (one.take(), other.take()) == (0, 1)  # 45 s each are expected until a first time is known
    assert one.take() is None
    one.note(0, 35.0)
    assert one.take() is None  # one still runs, and may use as much
    other.note(1, 20.0)
    assert other.take() == 2  # 35 s more at most
    other.note(2, 1.0)
    assert one.take() is None


def test_a_first_platform_always_runs(tmp_path: Path) -> None:
    assert Sample(tmp_path / "used.json", seconds=1).take() == 0


def test_the_time_that_a_platform_uses_is_written_down_when_it_fails_too(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "used.json", seconds=1)

    def fail() -> None:
        with sample.next_platform():
            raise ValueError("it fails")

    with pytest.raises(ValueError, match="it fails"):
        fail()
    assert json.loads((tmp_path / "used.json").read_text())[0] >= 0


def test_the_pairs_that_ran_are_told_with_the_processor_time() -> None:
    first = next(platforms(SEED))
    assert summary([(str(first), 12.0)]).startswith(
        f"platforms: 1 run, {len(pairs_of(first)):,} of {len(all_pairs()):,} pairs, 12 s"
    )


def test_the_first_platforms_of_a_seed_are_always_the_same_and_cover_much() -> None:
    first = [next(platforms(SEED)) for _ in range(2)]
    assert first[0] == first[1]
    assert Platform.parse(str(first[0])) == first[0]
    covered = pairs_of(first[0])
    assert covered <= all_pairs()
    assert len(covered) > 500
