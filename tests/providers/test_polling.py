"""Many batches are read from lists, the rest one by one, and at most as many of these as a tick has time for."""

from __future__ import annotations

from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.providers.paging import poll_batches, walk_pages
from dagster_llm_batch.types import BatchReport, BatchStatus


def report(batch_id: str) -> BatchReport:
    return BatchReport(batch_id, BatchStatus.RUNNING)


def test_what_no_list_shows_is_read_one_by_one_up_to_a_bound_and_the_rest_is_left_out() -> None:
    wanted = [f"b{number}" for number in range(10)]
    asked: list[str] = []

    def one(batch_id: str) -> BatchReport:
        asked.append(batch_id)
        return report(batch_id)

    found = poll_batches(wanted, lambda _: [("b0", report("b0")), ("b2", report("b2"))], one, most_single=3)
    assert asked == ["b1", "b3", "b4"]
    assert found == {batch_id: report(batch_id) for batch_id in ("b0", "b1", "b2", "b3", "b4")}


class Listing:
    """A provider's list, the newest first, in pages of three; it counts its calls."""

    def __init__(self, size: int) -> None:
        self.ids = [f"b{number}" for number in range(size)]
        self.pages: list[str | None] = []
        self.single: list[str] = []

    def page(self, after: str | None) -> tuple[dict[str, str], bool]:
        self.pages.append(after)
        start = 0 if after is None else self.ids.index(after) + 1
        return {one: one for one in self.ids[start : start + 3]}, start + 3 < len(self.ids)

    def one(self, batch_id: str) -> BatchReport:
        self.single.append(batch_id)
        if batch_id == "broken":
            raise TransientError("no answer")
        return report(batch_id) if batch_id in self.ids else BatchReport(batch_id, BatchStatus.NOT_FOUND)

    def walk(self, wanted: list[str], most: int = 100) -> list[str]:
        return [batch_id for batch_id, _ in walk_pages(wanted, self.page, report, self.one, most)]


def test_what_lies_deep_in_a_list_is_not_walked_to_from_the_top() -> None:
    listing = Listing(1_000)
    wanted = listing.ids[900:906]
    assert listing.walk(wanted) == wanted
    assert listing.single == ["b900"]
    assert listing.pages == [None, "b900", "b903"]


def test_a_list_that_ends_is_gone_on_with_where_the_next_wanted_one_is() -> None:
    listing = Listing(9)
    assert sorted(listing.walk(["b7", "b8", "b0", "b1"])) == ["b0", "b1", "b7", "b8"]
    assert listing.pages == [None, "b2", "b7"]
    assert Listing(5).walk(["b4", "b0", "b1"]) == ["b0", "b1", "b4"]


def test_no_more_pages_are_read_than_allowed() -> None:
    listing = Listing(100)
    assert listing.walk(listing.ids, most=2) == listing.ids[:6]
    assert len(listing.pages) == 2


def test_a_list_in_another_order_is_walked_from_its_top() -> None:
    listing = Listing(12)
    wanted = listing.ids[:2:-1]
    assert sorted(listing.walk(wanted)) == sorted(wanted)
    assert listing.single == ["b11"]
    assert listing.pages == [None, "b11", "b2", "b5", "b8"]


def test_the_list_goes_on_after_the_first_wanted_batch_that_is_there() -> None:
    listing = Listing(1_000)
    there = listing.ids[900:905]
    assert listing.walk(["gone", *there]) == ["gone", *there]
    assert listing.pages == [None, "b900", "b903"]
    assert listing.walk(["broken", "gone", *there]) == ["gone", *there]
