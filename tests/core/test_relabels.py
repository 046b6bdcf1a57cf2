"""The sample of older labels: its guarantee in simulations, its interval, the decision, and the settings."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy

from dagster_llm_batch.core.label_join import Labeled
from dagster_llm_batch.core.relabels import OLDER_PAIRS, Relabels, no_older_labels, target_text
from dagster_llm_batch.core.reuse import Relabel
from dagster_llm_batch.core.shares import AUDITED, HELD, OWN
from dagster_llm_batch.core.thresholds import choose_sample, count_allowed, find_interval

DRAWS = 1_000


def relabels(pairs: list[dict[str, Any]], allowed: int = 0, **changes: Any) -> Relabels:
    usual: dict[str, Any] = {
        "pairs": pa.Table.from_pylist(pairs, schema=OLDER_PAIRS),
        "target": "topic",
        "error": 0.02,
        "confidence": 0.95,
        "look": 1,
        "look_id": "",
        "rows": sum(pair["rows"] for pair in pairs),
        "sample": sum(pair["drawn"] for pair in pairs),
        "allowed": allowed,
        "older": "before",
        "definition": "d",
    }
    return Relabels(**{**usual, **changes})


def pair(name: str, leader: str | None, older: Any = "x", *, drawn: int = 0, rows: int = 1) -> dict[str, Any]:
    state = AUDITED if drawn else HELD
    texts = {"llm_request_id": name, "leader": leader, "version": "v1", "older": target_text(older), "state": state}
    return {**texts, "rows": rows, "drawn": drawn, "is_shared": False}


def results(kind: pa.DataType | None = None, **topics: Any) -> pa.Table:
    outcomes = ["errored" if topic is None else "succeeded" for topic in topics.values()]
    return pa.table(
        {
            "llm_request_id": pa.array([*topics], pa.string()),
            "llm_outcome": pa.array(outcomes, pa.string()),
            "topic": pa.array([*topics.values()], kind or pa.string()),
        }
    )


def shared(decided: Relabels) -> set[str]:
    return {one["llm_request_id"] for one in decided.pairs.to_pylist() if one["is_shared"]}


def test_a_sample_without_changes_lets_the_held_labels_stay() -> None:
    known = relabels([pair("b", "B", drawn=1), pair("c", "C"), pair("d", "C")])
    assert known.compared.to_pylist() == ["b"]
    decided = known.decide(results(b="x"))
    assert (decided.wrong, decided.passes, shared(decided)) == (0, True, {"c", "d"})
    assert decided.asked_next.to_pylist() == []
    assert decided.copies_of == {"C": 2}
    assert decided.outcomes_besides == {"C": 1}, "the leader is no request of this submission"


@pytest.mark.parametrize("own", ["y", None])
def test_a_sampled_label_that_changes_or_is_missing_counts_and_then_all_are_asked(own: str | None) -> None:
    decided = relabels([pair("b", "B", drawn=2), pair("c", "C")], allowed=1).decide(results(b=own))
    assert (decided.wrong, decided.passes, shared(decided)) == (2, False, set())
    assert decided.asked_next.to_pylist() == ["c"]
    assert "All rows are asked" in decided.result_text


def test_a_missing_result_counts_as_changed() -> None:
    assert relabels([pair("b", "B", drawn=1), pair("c", "C")]).decide(results()).wrong == 1


@pytest.mark.parametrize(
    ("older", "same", "other", "kind"),
    [
        (3, 3, 4, pa.int64()),
        (True, True, False, pa.bool_()),
        (date(2026, 1, 2), date(2026, 1, 2), date(2026, 2, 1), pa.date32()),
        ("é", "é", "e", pa.string()),
    ],
)
def test_targets_of_each_type_are_compared_by_value(older: Any, same: Any, other: Any, kind: pa.DataType) -> None:
    known = relabels([pair("b", "B", older, drawn=1), pair("c", "C")])
    assert known.decide(results(kind, b=same)).wrong == 0
    assert known.decide(results(kind, b=other)).wrong == 1


def test_a_target_that_is_null_in_both_has_not_changed() -> None:
    both = results(b="x").set_column(2, "topic", pa.array([None], pa.string()))
    assert relabels([pair("b", "B", None, drawn=1), pair("c", "C")]).decide(both).wrong == 0


def test_a_row_without_a_sampled_request_does_not_count() -> None:
    other = {**pair("e", "E"), "state": OWN}
    assert relabels([pair("b", "B", drawn=1), other, pair("c", "C")]).decide(results(b="x", e="y")).wrong == 0


def test_the_stored_form_is_read_again() -> None:
    known = relabels([pair("b", "B", drawn=1), pair("c", "C")]).decide(results(b="x"))
    assert Relabels.of_json(known.settings_json(), known.pairs) == known


def test_labels_that_stay_have_their_older_request_and_prompt_and_rejects_lack_the_column() -> None:
    decided = relabels([pair("b", "B", drawn=1), pair("c", "C")]).decide(results(b="x"))
    manifest = pa.table({"id": [1, 2, 3], "llm_request_id": ["b", "c", None]})
    for rows in (decided.redirect(manifest), pa.Table.from_batches([decided.redirect(manifest.to_batches()[0])])):
        assert rows.schema == decided.extend(manifest.schema)
        assert rows["llm_request_id"].to_pylist() == ["b", "C", None]
        labels = rows.append_column("llm_prompt_version", pa.array(["v2"] * 3))
        arranged = decided.arrange(Labeled(labels.slice(0, 2), labels.slice(2), 1))
        assert arranged.labels.column_names == ["id", "llm_request_id", "llm_prompt_version", "llm_reuse"]
        assert arranged.labels["llm_prompt_version"].to_pylist() == ["v2", "v1"]
        assert arranged.labels["llm_reuse"].to_pylist() == [None, "older"]
        assert arranged.rejects.column_names == ["id", "llm_request_id", "llm_prompt_version"]
        assert arranged.fenced == 1


def test_a_table_without_older_labels_has_the_same_columns() -> None:
    manifest = pa.table({"id": [1], "llm_request_id": ["b"]})
    labels = no_older_labels().redirect(manifest).append_column("llm_prompt_version", pa.array(["v2"]))
    arranged = no_older_labels().arrange(Labeled(labels, labels.slice(1)))
    assert arranged.labels["llm_reuse"].to_pylist() == [None]
    assert no_older_labels().asks_all


def test_an_erased_request_is_gone_from_the_sample_and_from_those_that_wait() -> None:
    left = relabels([pair("b", "B", drawn=1), pair("c", "C"), pair("d", "D", drawn=1)]).without({"c", "d"})
    decided = left.decide(results(b="x"))
    assert (decided.wrong, shared(decided), decided.asked_next.to_pylist()) == (0, set(), [])


def test_labels_do_not_stay_by_a_sample_of_which_too_few_rows_are_left() -> None:
    pairs = [pair(f"c{at}", f"o{at}", drawn=int(at < 200)) for at in range(4_000)]
    left = relabels(pairs).without({f"c{at}" for at in range(150)})
    decided = left.decide(results(**{f"c{at}": "x" for at in range(150, 200)}))
    assert (decided.rows, decided.sample, decided.wrong, decided.passes) == (3_850, 50, 0, False)
    assert len(decided.asked_next) == 3_800
    assert "too few are left for any" in decided.result_text


@pytest.mark.parametrize(("rows", "sample"), [(100, 40), (1_000, 195), (50, 49), (3_000, 100), (100_000, 1_000)])
@pytest.mark.parametrize("wrong", [0, 1, 7, 39])
def test_the_ends_of_the_interval_are_the_numbers_that_the_sample_does_not_refute(
    rows: int, sample: int, wrong: int
) -> None:
    fewest, most = find_interval(wrong, sample, rows, 0.95)

    # Recomputed by scipy. A table that is large for its sample has the binomial distribution instead, which is wider.
    def refuted_above(number: int) -> bool:
        return bool(scipy.stats.hypergeom.cdf(wrong, rows, number, sample) <= 0.05)

    def refuted_below(number: int) -> bool:
        return bool(scipy.stats.hypergeom.sf(wrong - 1, rows, number, sample) <= 0.05)

    assert not refuted_below(fewest) or rows >= 20 * sample
    assert not refuted_above(most) or rows >= 20 * sample
    assert fewest == 0 or refuted_below(fewest - 1)
    assert most == rows or refuted_above(most + 1)


def test_an_interval_of_a_sample_that_changes_as_a_whole_reaches_all_rows() -> None:
    fewest, most = find_interval(40, 40, 1_000, 0.95)
    assert most == 1_000
    assert 900 < fewest < 1_000


@pytest.mark.simulation
@pytest.mark.parametrize(("rows", "share"), [(1_000, 0.021), (10_000, 0.0205), (500, 0.03)])
@pytest.mark.parametrize("of_request", [1, 20])
def test_labels_rarely_stay_if_too_many_would_change(rows: int, share: float, of_request: int) -> None:
    """Draw a thousand partitions of each kind, which takes long."""
    settings, rng, broken = Relabel("topic", share=0.02), np.random.default_rng(1), 0
    sample = choose_sample(rows, settings.agreement, settings.confidence)
    allowed = count_allowed(sample, rows, settings.agreement, settings.confidence)
    for _ in range(DRAWS):
        requests = -(-rows // of_request)
        changed = (rng.random(requests) < share)[np.arange(rows) % requests]
        found = int(changed[rng.choice(rows, sample, replace=False)].sum())
        broken += found <= allowed and (changed.sum() - found) / rows > settings.share
    assert broken <= 0.05 * DRAWS
