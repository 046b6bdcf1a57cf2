"""Quality of one candidate's labels: one `Evaluation` for each candidate and target.

Every figure is over the labeled rows unless its name shows otherwise. None means undefined for these rows or this kind
of target, never zero; figures are never NaN. Macro averages are over the classes that occur in gold or predictions of
the labeled rows. Precision is 0 without predictions, and recall is 0 without gold rows (scikit-learn's convention).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.calibration import calibration_of
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.columns import Kind
from dagster_llm_batch.metrics.intervals import (
    CONFIDENCE,
    Interval,
    share_interval,
    unbounded_interval,
)
from dagster_llm_batch.metrics.joining import Class, Joined
from dagster_llm_batch.metrics.likelihood import LIKELIHOOD
from dagster_llm_batch.metrics.per_class import class_name, coded, effective_rows, surveyed, with_unlabeled
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.survey import Figure, Survey
from dagster_llm_batch.metrics.tally import Tally, sampled_rows, stands_for, tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Evaluation", "accuracy_interval", "evaluate", "kappa_of"]


@dataclass(frozen=True)
class Evaluation:
    """One candidate measured on one target.

    Intervals are 95 %, by the unit. `…_interval` is their method, or the reason for a missing interval (see
    `intervals`; for gold with weights, they are design-based, see `survey`).

    - Rows: `n_gold = n_labeled + n_absent + n_rejected + n_empty` (see `Joined`); `coverage = n_labeled / n_gold`, 0
      without gold. `n_gold_null` gold rows without a value and `n_ignored` candidate rows without gold take no part.
    - `n_eff`: the number of labeled rows from a simple random sample with the same information, if gold has the weights
      of a sample; None if each row counts once. With weights, all figures but counts, costs and latencies are estimates
      for all rows that the sample was drawn from.
    - `n_units`: independent units among the labeled rows, requests or clusters (see `clusters`).
    - `accuracy` is over labeled rows; `accuracy_all` over all gold rows, where an unlabeled row is wrong.
    - `baseline_accuracy`: the score over all gold rows of always answering `baseline_class` (the most frequent in gold;
      the first, in a tie). Compare it with `accuracy_all`; a candidate below it is worse than a constant.
      `baseline_accuracy_labeled`: the possible score of a constant over the labeled rows. Compare it with `accuracy`.
    - `kappa`: Cohen's, weighted by `kappa_weights`; None if chance alone cannot disagree (one class). `kappa_all`: over
      all gold rows, where a missing label counts as a separate answer that is never right (with weights, it has the
      largest distance).
    - `mae rmse pearson spearman`: numeric targets only, which lack all figures of classes.
    - `cost_usd`: known cost of the candidate's rows that met gold, rejected ones included; a lower bound while
      `n_cost_unknown` is not 0, and `cost_per_correct_usd` is None then.
    - `latency_p50_seconds`, `latency_p95_seconds`: time of the labeled rows, from submission to the end of their batch.
    - `n_confident`: labeled rows with a confidence, the basis of `mean_confidence`, `ece` and `brier` (see
      `Calibration`).
    - `on_pareto_front`: False if another candidate on this target is at least as good for less, or better at the same
      cost; see `pareto`.
    """

    candidate: str
    target: str
    kind: Kind
    n_gold: int
    n_labeled: int
    n_absent: int
    n_rejected: int
    n_empty: int
    n_gold_null: int
    n_ignored: int
    coverage: float
    n_units: int = 0
    n_eff: float | None = None
    n_classes: int | None = None
    n_correct: int | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_interval: str | None = None
    accuracy_all: float | None = None
    accuracy_all_low: float | None = None
    accuracy_all_high: float | None = None
    accuracy_all_interval: str | None = None
    baseline_class: str | None = None
    baseline_accuracy: float | None = None
    baseline_accuracy_labeled: float | None = None
    macro_precision: float | None = None
    macro_recall: float | None = None
    macro_f1: float | None = None
    macro_f1_low: float | None = None
    macro_f1_high: float | None = None
    macro_f1_interval: str | None = None
    kappa: float | None = None
    kappa_low: float | None = None
    kappa_high: float | None = None
    kappa_interval: str | None = None
    kappa_all: float | None = None
    kappa_weights: Literal["linear", "quadratic"] | None = None
    mae: float | None = None
    mae_low: float | None = None
    mae_high: float | None = None
    mae_interval: str | None = None
    rmse: float | None = None
    rmse_low: float | None = None
    rmse_high: float | None = None
    rmse_interval: str | None = None
    pearson: float | None = None
    spearman: float | None = None
    cost_usd: Decimal | None = None
    n_cost_unknown: int = 0
    cost_per_correct_usd: Decimal | None = None
    latency_p50_seconds: float | None = None
    latency_p95_seconds: float | None = None
    n_confident: int | None = None
    mean_confidence: float | None = None
    ece: float | None = None
    brier: float | None = None
    on_pareto_front: bool | None = None
    models: tuple[str, ...] = ()
    prompt_versions: tuple[str, ...] = ()


def evaluate(joined: Joined | Tally) -> Evaluation:
    """Measure one candidate. The same input gives the same figures, in one piece or in parts."""
    counted = tally(joined)
    numeric = counted.target.kind == "numeric"
    figures = _numeric(counted) if numeric else _categorical(counted)
    if calibrated := calibration_of(counted):
        figures |= {"n_confident": calibrated.n, "mean_confidence": calibrated.mean_confidence}
        figures |= {"ece": calibrated.ece, "brier": calibrated.brier}
    n_correct = figures.get("n_correct")
    per_correct = None
    if counted.cost_usd is not None and not counted.n_cost_unknown and n_correct:
        # The cost of a gold row, for the share of all rows that is correct.
        weighted = Decimal(figures["accuracy_all"] * counted.n_gold) if counted.is_weighted else n_correct
        per_correct = counted.cost_usd / weighted
    labeled, all_gold = stands_for(counted.cells), stands_for(counted.gold)
    p50, p95 = _waits(counted)
    return Evaluation(
        candidate=counted.candidate,
        target=counted.target.name,
        kind=counted.target.kind,
        n_gold=counted.n_gold,
        n_labeled=counted.n_labeled,
        n_absent=counted.n_absent,
        n_rejected=counted.n_rejected,
        n_empty=counted.n_empty,
        n_gold_null=counted.n_gold_null,
        n_ignored=counted.n_ignored,
        coverage=float(labeled.sum() / all_gold.sum()) if counted.n_gold else 0.0,
        n_eff=_effective(counted),
        n_units=Units.of(counted.cells["n"], counted.cells["cluster"]).n_units,
        cost_usd=counted.cost_usd,
        n_cost_unknown=counted.n_cost_unknown,
        cost_per_correct_usd=per_correct,
        latency_p50_seconds=p50,
        latency_p95_seconds=p95,
        models=counted.models,
        prompt_versions=counted.prompt_versions,
        **figures,
    )


def _categorical(counted: Tally) -> dict[str, Any]:
    weights, kind = counted.target.kappa_weights, counted.gold.schema.field("gold").type
    if weights and not pa.types.is_integer(kind):
        raise ConfigError(
            f"Target '{counted.target.name}' has kappa_weights='{weights}', which needs integer classes, and its "
            f"values are {kind}. Remove kappa_weights or store the classes as integers."
        )
    classes, table = coded(counted)
    n_gold = counted.n_gold
    if not n_gold:
        return {"n_classes": 0, "n_correct": 0, "kappa_weights": weights}
    support, predicted, correct = table.marginals()
    n_correct = int(correct.sum())
    of_class = _by_class(counted)
    whole = sum(of_class.values())
    baseline = min(of_class, key=lambda value: (-of_class[value], value))
    is_correct = pc.equal(counted.cells["gold"], counted.cells["predicted"]).to_numpy()
    figures = {
        "n_classes": len(classes),
        "n_correct": n_correct,
        "accuracy_all": float(stands_for(counted.cells)[is_correct].sum() / whole),
        **_ends("accuracy_all", accuracy_interval(counted, on_all=True)),
        "baseline_class": class_name(baseline),
        "baseline_accuracy": of_class[baseline] / whole,
        "kappa_weights": weights,
    }
    values = [int(value) for value in classes] if weights else []
    figures["kappa_all"] = with_unlabeled(counted, classes).kappa(values=values, weights=weights)[0]
    if not counted.n_labeled:
        return figures
    if counted.is_weighted:
        return figures | _weighted(surveyed(counted), values, weights)

    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    seen = support + predicted > 0
    macro_f1, f1_interval = table.macro_f1()
    kappa, kappa_interval = table.kappa(values=values, weights=weights)
    return figures | {
        "accuracy": n_correct / counted.n_labeled,
        **_ends("accuracy", accuracy_interval(counted)),
        "baseline_accuracy_labeled": float(support.max()) / counted.n_labeled,
        # 0 without predictions, or without gold rows
        "macro_precision": float(np.mean((correct / predicted.clip(min=1))[seen])),
        "macro_recall": float(np.mean((correct / support.clip(min=1))[seen])),
        "macro_f1": macro_f1,
        **_ends("macro_f1", f1_interval),
        "kappa": kappa,
        **_ends("kappa", kappa_interval),
    }


def _ends(figure: str, interval: Interval) -> dict[str, Any]:
    """Return the fields of the interval of a figure."""
    return {
        f"{figure}_low": interval.low,
        f"{figure}_high": interval.high,
        f"{figure}_interval": interval.method,
    }


def accuracy_interval(counted: Tally, *, on_all: bool = False, confidence: float = CONFIDENCE) -> Interval:
    """Compute the interval of the accuracy over the labeled rows, or over all gold rows, where rows without a label are
    wrong. For weighted gold it is the interval of its effective rows.
    """
    table = effective_rows(counted, on_all=on_all)
    if not table.n:
        return Interval(None, None, "none: no labeled rows")
    return share_interval((table.gold == table.predicted).astype("float64"), table.units, confidence=confidence)


def kappa_of(counted: Tally, *, on_all: bool = False, confidence: float = CONFIDENCE) -> tuple[float | None, Interval]:
    """Compute kappa with its interval, over the labeled rows, or over all gold rows (see `Evaluation`), with the
    target's weights. For weighted gold it is the interval of its effective rows.
    """
    weights, table = counted.target.kappa_weights, effective_rows(counted, on_all=on_all)
    if not table.n:
        return None, Interval(None, None, "none: no labeled rows")
    values = [int(value) for value in counted.classes()] if weights else []
    return table.kappa(values=values, weights=weights, confidence=confidence)


def _weighted(survey: Survey, values: Sequence[int], weights: Literal["linear", "quadratic"] | None) -> dict[str, Any]:
    """Return figures of classes and their intervals, for rows with unequal weights."""
    accuracy = survey.accuracy()
    kappa, (precision, recall, f1) = survey.kappa(values, weights), survey.macro()
    return {
        "accuracy": accuracy.value,
        **_ends("accuracy", _of_design(accuracy)),
        "baseline_accuracy_labeled": survey.largest_class(),
        "macro_precision": precision,
        "macro_recall": recall,
        "macro_f1": f1.value,
        **_ends("macro_f1", _of_design(f1)),
        "kappa": kappa.value,
        **_ends("kappa", _of_design(kappa)),
    }


def _of_design(figure: Figure) -> Interval:
    """Return the interval of a figure of weighted gold, with its method."""
    few = "none: too few effective rows, or rows of a class"
    return Interval(figure.low, figure.high, few if figure.low is None else LIKELIHOOD)


def _by_class(counted: Tally) -> dict[Class, float]:
    """Return the total weight of each class of gold."""
    by_class: dict[Class, float] = {}
    for value, rows in zip(counted.gold["gold"].to_pylist(), stands_for(counted.gold).tolist(), strict=True):
        by_class[value] = by_class.get(value, 0.0) + rows
    return by_class


def _effective(counted: Tally) -> float | None:
    if not counted.is_weighted or not len(counted.cells):
        return None
    return sampled_rows(counted)[1].n_eff


def _numeric(counted: Tally) -> dict[str, Any]:
    if not len(counted.cells):
        return {}
    with evaluation_extra("Evaluating numbers"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    gold, predicted = (counted.cells[name].to_numpy() for name in ("gold", "predicted"))
    times = stands_for(counted.cells)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(predicted - gold)
        # Divided by the largest error, so that squares stay in the range of floats.
        largest = error.max() or 1.0
        mae = np.average(error, weights=times)
        rmse = largest * np.sqrt(np.average((error / largest) ** 2, weights=times))
        bounds = _error_interval(counted, error / largest)
        squared = _error_interval(counted, (error / largest) ** 2, of="squares")
    return {
        "mae": _finite(mae),
        **_ends("mae", _scaled(bounds, largest)),
        "rmse": _finite(rmse),
        **_ends("rmse", _scaled(squared, largest, root=True)),
        "pearson": _correlation(gold, predicted, times),
        "spearman": _correlation(_ranks(gold, times), _ranks(predicted, times), times),
    }


def _error_interval(
    counted: Tally, values: NDArray[np.float64], *, of: Literal["errors", "squares"] = "errors"
) -> Interval:
    """Compute the interval of the mean of values, which are not negative and given for the rows of each cell."""
    if not counted.is_weighted:
        return unbounded_interval(values, Units.of(counted.cells["n"], counted.cells["cluster"]), of=of)
    cell, rows = sampled_rows(counted)
    # Only a row's weight relative to the others counts.
    weights = rows.weight * (len(rows.weight) / rows.weight.sum())
    return unbounded_interval(values[cell], Units(weights, rows.unit), of=of)


def _scaled(interval: Interval, by: float, *, root: bool = False) -> Interval:
    """Return the interval of errors that were divided by `by`; with `root`, of the root of their squares' mean."""
    if interval.ends is None:
        return interval
    low, high = (max(0.0, end) ** (0.5 if root else 1) * by for end in interval.ends)
    return Interval(low, high, interval.method)


def _ranks(values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean rank, from 1, of each value with its number of occurrences."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    _, at = np.unique(values, return_inverse=True)
    counts = np.bincount(at, weights=times)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[at]
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64], times: NDArray[np.float64]) -> float | None:
    """Compute Pearson's r. None for a constant side, which has nothing to go along with."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    if np.min(a) == np.max(a) or np.min(b) == np.max(b):
        return None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        (var_a, both), (_, var_b) = np.cov(a, b, aweights=times, ddof=0)
        return _finite(np.clip(both / np.sqrt(var_a) / np.sqrt(var_b), -1, 1))


def _waits(counted: Tally) -> tuple[float | None, float | None]:
    """Return the median and 95 % quantile, in seconds; between two rows, in proportion."""
    if not len(counted.waits):
        return None, None
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    values, upto = counted.waits["microseconds"].to_numpy(), np.cumsum(counted.waits["n"].to_numpy())

    def quantile(part: float) -> float:
        at = part * (int(upto[-1]) - 1)
        low, high = (values[np.searchsorted(upto, rank, side="right")] for rank in (math.floor(at), math.ceil(at)))
        return float(low + (high - low) * (at - math.floor(at))) / 1e6

    return quantile(0.5), quantile(0.95)


def _finite(value: np.floating[Any] | float) -> float | None:
    return float(value) if math.isfinite(value) else None
