"""Each row lies in the one part that its request id belongs to, and rows of a part keep their order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_llm_batch.core.label_join import pair_rows
from dagster_llm_batch.loop.label import part_names, read_part, scatter

SCHEMA = pa.schema([("row", pa.int64()), ("id", pa.string()), ("text", pa.string())])


@pytest.mark.parametrize("rows", [1, 8_193, 100_000, 1_000_000, 10_000_000])
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_part_holds_the_rows_between_its_name_and_the_next(rows, data, tmp_path_factory):
    names = part_names(rows)
    edges = st.sampled_from([name + tail for name in names for tail in ("0" * 36, "f" * 36)])
    ids = data.draw(st.lists(st.text("0123456789abcdef", min_size=40, max_size=40) | edges, max_size=60))
    table = pa.table([list(range(len(ids))), ids, [f"of {request_id}" for request_id in ids]], schema=SCHEMA)
    folder = tmp_path_factory.mktemp("scattered") / "parts"
    none = pa.RecordBatch.from_pylist([], schema=SCHEMA)
    scatter([none, *table.to_batches(7)], SCHEMA, "id", names, folder)
    for name, end in zip(names, [*names[1:], "g"], strict=True):
        expected = [row for row in table.to_pylist() if name <= row["id"] < end]
        assert read_part(folder, name).to_pylist() == expected


@settings(deadline=None)
@given(data=st.data())
def test_rows_are_beside_their_results_until_one_is_at_another_place_and_none_is_lost(data):
    ids = [f"{number:040x}" for number in range(data.draw(st.integers(1, 40)))]
    places = list(range(len(ids)))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(ids) - 1))
        places = [*places[:at], *places[at + 1 :], places[at]]
    rows = pa.table([ids, ids], names=["id", "key"])
    results = pa.table([[ids[place] for place in places]], names=["id"])
    size, other = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    parts, seen = pair_rows(iter(rows.to_batches(size)), iter(results.to_batches(other)), "id"), []
    while True:
        try:
            own, answers = next(parts)
        except StopIteration as end:
            rest = [[name for batch in left for name in batch["id"].to_pylist()] for left in end.value]
            break
        assert own["id"].to_pylist() == own["key"].to_pylist() == next(answers)["id"].to_pylist()
        seen += own["id"].to_pylist()
    same = next((at for at, place in enumerate(places) if place != at), len(ids))
    assert len(seen) == (same if same == len(ids) else same // size * size)
    assert (seen + rest[0], sorted(seen + rest[1])) == (ids, ids)


def test_a_batch_is_let_go_before_the_next_is_read(tmp_path: Path) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(3):
            batch = pa.record_batch([[number], ["0" * 40], ["of it"]], schema=SCHEMA)
            held = weakref.ref(batch)
            yield batch
            del batch
            assert held() is None

    scatter(batches(), SCHEMA, "id", part_names(20_000), tmp_path / "parts")
