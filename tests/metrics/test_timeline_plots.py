"""Pictures of trade-offs and of time: their content, and robustness against any row data."""

from __future__ import annotations

import io
import warnings
from datetime import date, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from PIL import Image

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import (
    DayCost,
    LabelerPair,
    Target,
    agreement_png,
    compare,
    costs_png,
    drift_between,
    drift_png,
    pareto_png,
    reliability_png,
)

BLUE, AMBER, INK = (37, 99, 166), (180, 83, 9), (31, 41, 51)


def opened(png):
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.width) == ("PNG", 896)
    return image.convert("RGB")


def pixels(png, color):
    """Count the pixels with exactly this color."""
    image = opened(png)
    return {c: n for n, c in image.getcolors(image.width * image.height)}.get(color, 0)


def bake_off(*candidates, name=None, kind="categorical"):
    """Evaluate candidates given as (share of 20 rows that are right, cost of a row)."""
    target = name or "t"
    right, wrong = (1.0, 3.0) if kind == "numeric" else ("a", "b")
    gold = pa.table({"id": range(20), target: [right] * 20})
    tables = {}
    for at, (share, cost) in enumerate(candidates):
        said = [right if i < share * 20 else wrong for i in range(20)]
        table = {"id": range(20), target: said}
        if cost is not None:
            table["llm_cost_usd"] = pa.array([Decimal(cost)] * 20)
        tables[name or f"c{at}"] = pa.table(table)
    return compare(gold, tables, key="id", targets=[Target(target, kind=kind)]).evaluations


class TestPareto:
    def test_each_candidate_adds_a_line_also_one_whose_cost_is_not_known(self):
        one = opened(pareto_png(bake_off((0.5, "1")), "t"))
        three = opened(pareto_png(bake_off((0.5, "1"), (0.9, "2"), (0.7, None)), "t"))
        assert three.height - one.height == pytest.approx(2 * 0.27 * 112, abs=2)

    def test_only_the_front_is_filled(self):
        on, off = bake_off((0.9, "1"), (0.5, "0.5")), bake_off((0.9, "1"), (0.5, "2"))
        assert pixels(pareto_png(on, "t"), BLUE) > pixels(pareto_png(off, "t"), BLUE) + 280

    @pytest.mark.parametrize("costs", [["0", "0"], ["0", "1"], ["1", "1"], ["0", "0.0001", "9"], ["0.00001", "1000"]])
    def test_costs_far_apart_equal_or_none_can_be_drawn(self, costs):
        assert opened(pareto_png(bake_off(*[(0.5, cost) for cost in costs]), "t"))

    @pytest.mark.slow
    def test_the_better_one_is_higher_of_classes_and_of_numbers(self):
        for kind in ("categorical", "numeric"):
            image = opened(pareto_png(bake_off((0.9, "1"), (0.5, "2"), kind=kind), "t"))
            discs = [y for y in range(image.height // 2) for x in (0, 1) if _blue_run(image, y, x)]
            assert discs  # the front's disc; the expensive and worse candidate is hollow
            assert min(discs) < image.height * 0.35

    def test_without_a_known_cost_there_is_nothing_to_draw(self):
        with pytest.raises(ConfigError, match="cost that is known in full"):
            pareto_png(bake_off((0.5, None)), "t")


def _blue_run(image, y, half):
    row = [image.getpixel((x, y)) for x in range(half * 448, half * 448 + 448)]
    return sum(color == BLUE for color in row) > 11


class TestReliability:
    def drawn(self, sure, right=(True, True, False)):
        gold = pa.table({"id": range(len(right)), "t": ["a"] * len(right)})
        said = pa.array(["a" if one else "b" for one in right])
        table = pa.table({"id": gold["id"], "t": said, "sure": pa.array(sure, pa.float64())})
        target = Target("t", confidence_column="sure")
        return compare(gold, {"c": table}, key="id", targets=[target]).calibrations[0]

    def test_the_gap_is_amber_and_grows_with_the_error(self):
        near, far = self.drawn([0.95, 0.9, 0.1]), self.drawn([0.1, 0.05, 0.95])
        assert near.ece < far.ece
        assert pixels(reliability_png(near), AMBER) * 2 < pixels(reliability_png(far), AMBER)

    def test_without_a_confidence_there_is_nothing_to_draw(self):
        with pytest.raises(ConfigError, match="no label with a confidence"):
            reliability_png(self.drawn([None, None, None]))


class TestAgreement:
    def pairs(self, n, kappa=0.5):
        names = [f"labeler {i}" for i in range(n)]
        return [
            LabelerPair("t", a, b, 100 - i, 50, 0.5, kappa, None, None, "none")
            for i, a in enumerate(names)
            for b in names[i + 1 :]
        ]

    @pytest.mark.parametrize("n", [2, 5, 12, 40])
    def test_any_number_of_labelers_fits(self, n):
        assert opened(agreement_png(self.pairs(n))).height < 1600

    def test_more_agreement_is_darker_and_none_is_no_color(self):
        def ink(png):
            image = opened(png).convert("L")
            return sum(image.histogram()[:140])

        assert ink(agreement_png(self.pairs(4, 0.95))) > ink(agreement_png(self.pairs(4, 0.2)))
        assert opened(agreement_png(self.pairs(3, None)))

    def test_nobody_agrees_with_nobody(self):
        with pytest.raises(ConfigError, match="no two labelers"):
            agreement_png([])


def days(n, shift_at=None):
    counts = {}
    for i in range(n):
        shifted = shift_at is not None and i >= shift_at
        counts[(date(2026, 1, 1) + timedelta(days=i)).isoformat()] = {"a": 20 if shifted else 80, "b": 100}
    return counts


def drifts(counts, **more):
    keys = list(counts)
    return [
        drift_between(
            counts[key],
            [counts[keys[0]]],
            partition=key,
            candidate="c",
            target="t",
            against="",
            max_psi=0.25,
            level=0.01,
            earlier=[counts[keys[0]]] * 30 + [counts[other] for other in keys[:at]],
            **more,
        )
        for at, key in enumerate(keys)
    ]


class TestDrift:
    @pytest.mark.slow
    def test_partitions_that_drifted_are_amber(self):
        steady, shifted = days(12), days(12, shift_at=5)
        quiet, loud = (drift_png("c", "t", counts, drifts(counts), max_psi=0.25) for counts in (steady, shifted))
        assert pixels(loud, AMBER) > pixels(quiet, AMBER) + 50

    def test_what_the_online_detector_saw_is_marked(self):
        counts = days(10)
        unseen = drift_png("c", "t", counts, drifts(counts), max_psi=0.25)
        seen = drift_png("c", "t", counts, drifts(counts, adwin_changed=("a",)), max_psi=0.25)
        assert pixels(seen, INK) > pixels(unseen, INK)

    @pytest.mark.slow
    @pytest.mark.parametrize("n", [1, 12, 400])
    def test_any_number_of_partitions_fits(self, n):
        counts = days(n)
        assert opened(drift_png("c", "t", counts, drifts(counts), max_psi=0.25))

    def test_more_classes_than_colors_are_folded(self):
        counts = {"mon": {f"class {i}": i + 1 for i in range(30)}}
        assert opened(drift_png("c", "t", counts, drifts(counts), max_psi=0.25))

    def test_partitions_without_labels_are_left_out(self):
        counts = {"mon": {"a": 1}, "tue": {}}
        assert drift_png("c", "t", counts, [], max_psi=1) == drift_png("c", "t", {"mon": {"a": 1}}, [], max_psi=1)
        with pytest.raises(ConfigError, match="has no labels of"):
            drift_png("c", "t", {"tue": {}}, [], max_psi=1)


class TestCosts:
    def cost(self, day, usd, *, dataset="d", realtime=None):
        known = None if realtime is None else Decimal(realtime)
        return DayCost(date(2026, 1, 1) + timedelta(days=day), dataset, Decimal(usd), known)

    def test_days_without_costs_have_a_place_too(self):
        gap = costs_png([self.cost(0, "1"), self.cost(9, "1")])
        side_by_side = costs_png([self.cost(0, "1"), self.cost(1, "1")])
        assert opened(gap).size == opened(side_by_side).size
        assert gap != side_by_side

    def test_real_time_is_outlined_only_where_it_is_known_in_full(self):
        known = costs_png([self.cost(0, "1", realtime="2"), self.cost(0, "1", dataset="e", realtime="2")])
        partly = costs_png([self.cost(0, "1", realtime="2"), self.cost(0, "1", dataset="e")])
        neither = costs_png([self.cost(0, "1"), self.cost(0, "1", dataset="e")])
        assert partly == neither != known

    @pytest.mark.parametrize("n", [1, 3, 40])
    def test_any_number_of_datasets_days_and_zeros_fits(self, n):
        assert opened(costs_png([self.cost(i * 7, "0", dataset=f"dataset {i}") for i in range(n)]))

    def test_nothing_was_spent_is_no_picture(self):
        with pytest.raises(ConfigError, match="no costs to draw"):
            costs_png([])


@pytest.mark.parametrize(
    "text", [r"$\frac$ costs $5", "\x1b[31mred\x1b[0m", "long " * 500, "発注 🎉", "\u202eabc", " ", "_x"]
)
def test_any_text_can_be_drawn_without_a_warning(text):
    # Draw once first: the oldest matplotlib warns about another package while it is imported.
    assert opened(pareto_png(bake_off((0.5, "1"), name="first"), "first"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(pareto_png(bake_off((0.5, "1"), name=text), text))
        assert opened(agreement_png([LabelerPair(text, text, "b", 1, 1, 1.0, 1.0, None, None, "none")]))
        counts = {text: {text: 3, "b": 1}}
        assert opened(drift_png(text, text, counts, [], max_psi=0.25))
        assert opened(costs_png([DayCost(date(2026, 1, 1), text, Decimal(1), None)]))


def test_the_same_figures_give_the_same_bytes():
    counts = days(5)
    assert drift_png("c", "t", counts, drifts(counts), max_psi=0.2) == drift_png(
        "c", "t", counts, drifts(counts), max_psi=0.2
    )
    assert pareto_png(bake_off((0.5, "1")), "t") == pareto_png(bake_off((0.5, "1")), "t")
