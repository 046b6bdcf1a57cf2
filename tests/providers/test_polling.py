"""Many batches are read from lists, the rest one by one, and never more of those than a tick has time for."""

from __future__ import annotations

from dagster_llm_batch.providers import polling
from dagster_llm_batch.providers.polling import poll_batches
from dagster_llm_batch.types import BatchReport, BatchStatus


def report(batch_id: str) -> BatchReport:
    return BatchReport(batch_id, BatchStatus.RUNNING)


def test_what_no_list_shows_is_read_one_by_one_up_to_a_bound_and_the_rest_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr(polling, "_SINGLE_AT_MOST", 3)
    wanted = [f"b{number}" for number in range(10)]
    asked: list[str] = []

    def one(batch_id: str) -> BatchReport:
        asked.append(batch_id)
        return report(batch_id)

    found = poll_batches(wanted, lambda _: [("b0", report("b0")), ("b2", report("b2"))], one)
    assert asked == ["b1", "b3", "b4"]
    assert found == {batch_id: report(batch_id) for batch_id in ("b0", "b1", "b2", "b3", "b4")}
