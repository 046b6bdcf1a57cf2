"""The names of windows, and how a topic is cut into them: pure, no broker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.streams import KafkaTopic, KafkaWindow
from dagster_llm_batch.streams.windows import OffsetRange, cut_windows, positions

OFFSETS = st.dictionaries(st.integers(0, 80), st.tuples(st.integers(0, 10**15), st.integers(0, 3_000)), max_size=40)


@settings(deadline=None)
@given(OFFSETS, st.integers(1, 5_000))
def test_windows_hold_every_offset_exactly_once_and_their_keys_say_which(spans, most):
    begins = {partition: start for partition, (start, _) in spans.items()}
    ends = {partition: start + n for partition, (start, n) in spans.items()}
    windows = list(cut_windows("a-topic", begins, ends, most, rest=True))
    assert all(KafkaWindow.parse(window.key) == window for window in windows)
    assert all(window.offsets <= most and len(window.key) <= 200 for window in windows)
    reached = dict(begins)
    for window in windows:
        for one in window.ranges:
            assert one.start == reached[one.partition]
            reached[one.partition] = one.end
    assert reached == ends
    held = {partition: end for partition, end in ends.items() if end > begins[partition]}
    assert positions("a-topic", [window.key for window in windows]) == held


def test_what_is_left_after_full_windows_waits():
    assert [one.key for one in cut_windows("t", {0: 5}, {0: 32}, 10, rest=False)] == ["t@0.5-15", "t@0.15-25"]
    assert [one.key for one in cut_windows("t", {0: 5}, {0: 32}, 10, rest=True)][-1] == "t@0.25-32"


def test_windows_that_overlap_are_told_with_both_names():
    with pytest.raises(InputError, match=r"t@0.0-10 and t@0.9-12 both hold offset 9 of partition 0"):
        positions("t", ["t@0.9-12", "other@0.5-30", "t@0.0-10"])


@pytest.mark.parametrize(
    "key", ["t", "t@", "t@0.5", "t@0.5-5", "t@0.9-5", "t@1.0-2_0.0-2", "t@0.0-2_0.4-5", "t@0.01-2"]
)
def test_a_text_that_is_no_window_is_refused(key):
    with pytest.raises(InputError, match="no window"):
        KafkaWindow.parse(key)


def test_a_window_of_another_topic_is_refused():
    with pytest.raises(InputError, match="of topic 'a', not of 'b'"):
        KafkaTopic("b").window(KafkaWindow("a", (OffsetRange(0, 0, 1),)).key)


def test_a_topic_that_kafka_does_not_allow_is_refused():
    with pytest.raises(ConfigError, match="no name of a topic"):
        KafkaTopic("a topic")
