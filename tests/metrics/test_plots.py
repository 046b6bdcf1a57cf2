"""Pictures: their content, robustness against any row data, and drawing without side effects."""

from __future__ import annotations

import dataclasses
import io
import warnings

import pyarrow as pa
import pytest
from PIL import Image

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import Confusion, Target, accuracy_png, compare, confusion_png
from dagster_llm_batch.metrics.confusion import MAX_DRAWN


def matrix(counts, classes=None, candidate="haiku", target="topic"):
    classes = classes or [f"class {i}" for i in range(len(counts))]
    return Confusion(candidate, target, tuple(classes), tuple(map(tuple, counts)), (0,) * len(classes))


def evaluations(gold=("a", "b", "a", "a"), said=("a", "b", "b", None), names=("haiku",), target="topic"):
    truth = pa.table({"id": range(len(gold)), target: pa.array(gold)})
    table = pa.table({"id": range(len(gold)), target: pa.array(said, pa.string())})
    return compare(truth, dict.fromkeys(names, table), key="id", targets=[target]).evaluations


def opened(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image.convert("RGB")


def blue_share(image, box):
    """Return the share of strongly blue pixels in a box given as fractions of the picture."""
    left, top, right, bottom = box
    part = image.crop(
        (int(left * image.width), int(top * image.height), int(right * image.width), int(bottom * image.height))
    )
    colors = part.getcolors(part.width * part.height)
    return sum(n for n, (r, _, b) in colors if b > r + 100) / (part.width * part.height)


@pytest.mark.parametrize("n", [1, 2, 3, 12, 16, 40])
def test_a_confusion_matrix_is_896_pixels_wide_whatever_its_size(n):
    image = opened(confusion_png(matrix([[i + j for j in range(n)] for i in range(n)])))
    assert image.width == 896
    assert 220 < image.height < 1500


def test_right_labels_are_dark_on_the_diagonal_and_wrong_ones_beside_it():
    left, right = (0.22, 0.35, 0.54, 0.52), (0.56, 0.35, 0.88, 0.52)  # the upper row of two classes
    perfect, swapped = opened(confusion_png(matrix([[9, 0], [0, 9]]))), opened(confusion_png(matrix([[0, 9], [9, 0]])))
    assert blue_share(perfect, left) > 0.7
    assert blue_share(perfect, right) < 0.1
    assert blue_share(swapped, right) > 0.7
    assert blue_share(swapped, left) < 0.1


@pytest.mark.slow
def test_more_classes_than_fit_are_folded_into_one():
    n = MAX_DRAWN + 4
    rare = [[10 * (i == j < MAX_DRAWN - 1) for j in range(n)] for i in range(n)]
    other = [list(row) for row in rare]
    other[n - 1][n - 2] = 1  # one row more, between two of the rare classes: visible in their sum only
    assert opened(confusion_png(matrix(rare))).size == opened(confusion_png(matrix(other))).size
    assert confusion_png(matrix(rare)) != confusion_png(matrix(other))


def test_the_same_figures_give_the_same_bytes_and_others_others():
    assert confusion_png(matrix([[1, 2], [3, 4]])) == confusion_png(matrix([[1, 2], [3, 4]]))
    assert confusion_png(matrix([[1, 2], [3, 4]])) != confusion_png(matrix([[1, 2], [3, 5]]))
    assert accuracy_png(evaluations()) == accuracy_png(evaluations())
    assert accuracy_png(evaluations()) != accuracy_png(evaluations(said=("a", "b", "a", None)))


@pytest.mark.parametrize(
    "text",
    [
        r"$\frac$ costs $5",
        "\x1b[31mred\x1b[0m",
        "long " * 500,
        "発注 🎉",
        "\u202eabc",
        "",
        "line\nbreak",
        "_nolegend_",
        "W" * 300,
    ],
)
def test_any_text_can_be_drawn_without_a_warning(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = opened(confusion_png(matrix([[3, 1], [0, 2]], [text, "b"], text, text)))
        assert picture.width == 896
        named = evaluations(gold=(text, "b", "b", text), said=(text, "b", text, None), names=(text, "b"))
        assert opened(accuracy_png([dataclasses.replace(one, target=text) for one in named])).width == 896


def test_dollars_are_drawn_as_dollars():
    # math leaves spaces out: read as such, these two would be one picture
    assert confusion_png(matrix([[1]], ["$a b$"])) != confusion_png(matrix([[1]], ["$ab$"]))


def test_each_candidate_and_target_makes_the_picture_higher():
    one, two = opened(accuracy_png(evaluations())), opened(accuracy_png(evaluations(names=("a", "b"))))
    panels = opened(accuracy_png([*evaluations(), *evaluations(target="urgency")]))
    assert one.width == two.width == panels.width == 896
    assert one.height < two.height < panels.height


def test_candidates_without_labels_and_targets_without_gold_can_be_drawn():
    assert opened(accuracy_png(evaluations(said=(None,) * 4))).width == 896
    assert opened(accuracy_png(evaluations(gold=(), said=()))).width == 896


def test_dots_at_0_and_100_percent_are_whole():
    beyond_0, beyond_100 = (
        (0.2, 0.4, 0.299, 0.75),
        (0.941, 0.4, 1, 0.75),
    )  # the axis goes from 0.30 to 0.94 of the width
    hopeless, perfect = (opened(accuracy_png(evaluations(said=said))) for said in ("babb", "abaa"))
    assert blue_share(hopeless, beyond_0) > 0 == blue_share(hopeless, beyond_100)
    assert blue_share(perfect, beyond_100) > 0 == blue_share(perfect, beyond_0)


def test_numbers_have_no_accuracy_to_draw():
    table = pa.table({"id": [1, 2], "x": [0.5, 1.5]})
    report = compare(table, {"c": table}, key="id", targets=[Target("x", kind="numeric")])
    with pytest.raises(ConfigError, match="No categorical evaluation to draw"):
        accuracy_png(report.evaluations)
    assert opened(accuracy_png([*report.evaluations, *evaluations()])).width == 896


def test_a_matrix_without_classes_is_refused():
    with pytest.raises(ConfigError, match="no classes to draw"):
        confusion_png(matrix([]))
