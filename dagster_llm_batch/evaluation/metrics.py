"""How good one candidate's labels are: one `Evaluation` for each candidate and target.

Every figure is over the labeled rows unless its name says otherwise. None means: not defined for these rows or this
kind of target, never zero; no figure is ever NaN. Macro averages go over the classes that occur in gold or
predictions of the labeled rows, with precision and recall 0 where nothing was predicted or nothing was there
(scikit-learn's convention).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation._extra import evaluation_extra
from dagster_llm_batch.evaluation.calibration import calibration_of
from dagster_llm_batch.evaluation.classes import class_name, coded
from dagster_llm_batch.evaluation.columns import Kind
from dagster_llm_batch.evaluation.joining import Class, Joined
from dagster_llm_batch.evaluation.resampling import CONFIDENCE, Cells, bootstrap_intervals, kappa, macro_f1

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """One candidate measured on one target. Intervals are 95 %: Wilson for accuracy, percentile bootstrap for the
    others.

    - Rows: `n_gold = n_labeled + n_absent + n_rejected + n_empty` (see `Joined`); `coverage = n_labeled / n_gold`, 0
      with no gold. `n_gold_null` gold rows without a value and `n_ignored` candidate rows without gold take no part.
    - `accuracy` is over labeled rows; `accuracy_all` over all gold rows, an unlabeled row being wrong.
    - `baseline_accuracy`: what answering `baseline_class` (the most frequent in gold; the first, in a tie) always would
      score over all gold rows. A candidate below it knows less than a constant.
    - `kappa`: Cohen's, weighted as `kappa_weights` says; None where chance alone cannot disagree (one class).
    - `mae rmse pearson spearman`: numeric targets only, which have none of the figures of classes.
    - `cost_usd`: known cost of the candidate's rows that met gold, rejected ones included; a lower bound while
      `n_cost_unknown` is not 0, and `cost_per_correct_usd` is None then.
    - `latency_p50_seconds`, `latency_p95_seconds`: how long the labeled rows took, from submission to the end of their
      batch.
    - `n_confident`: labeled rows with a confidence, over which `mean_confidence`, `ece` and `brier` are (see
      `Calibration`).
    - `on_pareto_front`: no other candidate on this target is as good for less, or better for as much; see `pareto`.
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
    n_classes: int | None = None
    n_correct: int | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_all: float | None = None
    baseline_class: str | None = None
    baseline_accuracy: float | None = None
    macro_precision: float | None = None
    macro_recall: float | None = None
    macro_f1: float | None = None
    macro_f1_low: float | None = None
    macro_f1_high: float | None = None
    kappa: float | None = None
    kappa_low: float | None = None
    kappa_high: float | None = None
    kappa_weights: Literal["linear", "quadratic"] | None = None
    mae: float | None = None
    rmse: float | None = None
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


def evaluate(joined: Joined, *, n_resamples: int = 1000, seed: int = 0) -> Evaluation:
    """Measure one candidate. `n_resamples=0` leaves the bootstrap intervals out. The same input gives the same
    figures.
    """
    figures = _numeric(joined) if joined.target.kind == "numeric" else _categorical(joined, n_resamples, seed)
    if calibrated := calibration_of(joined):
        figures |= {"n_confident": calibrated.n, "mean_confidence": calibrated.mean_confidence}
        figures |= {"ece": calibrated.ece, "brier": calibrated.brier}
    n_correct = figures.get("n_correct")
    per_correct = None
    if joined.cost_usd is not None and not joined.n_cost_unknown and n_correct:
        per_correct = joined.cost_usd / n_correct
    return Evaluation(
        candidate=joined.candidate,
        target=joined.target.name,
        kind=joined.target.kind,
        n_gold=joined.n_gold,
        n_labeled=joined.n_labeled,
        n_absent=joined.n_absent,
        n_rejected=joined.n_rejected,
        n_empty=joined.n_empty,
        n_gold_null=joined.n_gold_null,
        n_ignored=joined.n_ignored,
        coverage=joined.n_labeled / joined.n_gold if joined.n_gold else 0.0,
        cost_usd=joined.cost_usd,
        n_cost_unknown=joined.n_cost_unknown,
        cost_per_correct_usd=per_correct,
        latency_p50_seconds=joined.latency_p50_seconds,
        latency_p95_seconds=joined.latency_p95_seconds,
        models=joined.models,
        prompt_versions=joined.prompt_versions,
        **figures,
    )


def _categorical(joined: Joined, n_resamples: int, seed: int) -> dict[str, Any]:
    weights = joined.target.kappa_weights
    if weights and not pa.types.is_integer(joined.gold.type):
        raise ConfigError(
            f"Target '{joined.target.name}' has kappa_weights='{weights}', which needs integer classes, and its values "
            f"are {joined.gold.type}. Remove kappa_weights or store the classes as integers."
        )
    classes, gold, predicted = coded(joined)
    if not joined.n_gold:
        return {"n_classes": 0, "n_correct": 0, "kappa_weights": weights}
    n_correct = int((gold == predicted).sum())
    baseline = _most_frequent(joined.gold)
    figures = {
        "n_classes": len(classes),
        "n_correct": n_correct,
        "accuracy_all": n_correct / joined.n_gold,
        "baseline_class": class_name(baseline),
        "baseline_accuracy": pc.sum(pc.equal(joined.gold, pa.scalar(baseline, joined.gold.type))).as_py()
        / joined.n_gold,
        "kappa_weights": weights,
    }
    if not len(gold):
        return figures

    with evaluation_extra("Evaluating labels"):
        from scipy.stats import binomtest  # noqa: PLC0415  # optional dependency
        from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415  # optional dependency
    wilson = binomtest(n_correct, len(gold)).proportion_ci(CONFIDENCE, method="wilson")
    present = sorted({*gold.tolist(), *predicted.tolist()})
    precision, recall, f1, _ = precision_recall_fscore_support(
        gold, predicted, labels=present, average="macro", zero_division=0
    )
    cells = Cells.of(gold, predicted, len(classes))
    values = [int(value) for value in classes] if weights else []
    weighted = partial(kappa, values=values, weights=weights)
    point = _finite(weighted(cells, cells.counts[None, :])[0])
    intervals = bootstrap_intervals(cells, [macro_f1, weighted], n_resamples=n_resamples, seed=seed)
    (f1_low, f1_high), (kappa_low, kappa_high) = (interval or (None, None) for interval in intervals)
    return figures | {
        "accuracy": n_correct / len(gold),
        "accuracy_low": float(wilson.low),
        "accuracy_high": float(wilson.high),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
        "macro_f1_low": f1_low,
        "macro_f1_high": f1_high,
        "kappa": point,
        "kappa_low": kappa_low,
        "kappa_high": kappa_high,
    }


def _most_frequent(gold: pa.Array) -> Class:
    counts = pc.value_counts(gold).to_pylist()
    value: Class = min(counts, key=lambda item: (-item["counts"], item["values"]))["values"]
    return value


def _numeric(joined: Joined) -> dict[str, Any]:
    if not joined.n_labeled:
        return {}
    with evaluation_extra("Evaluating numbers"):
        import numpy as np  # noqa: PLC0415  # optional dependency
        from scipy.stats import rankdata  # noqa: PLC0415  # optional dependency
    gold, predicted = (values.to_numpy(zero_copy_only=False) for values in joined.labeled())
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(predicted - gold)
        largest = error.max() or 1.0  # divided out, so that no square leaves the range of floats
        mae, rmse = error.mean(), largest * np.sqrt(((error / largest) ** 2).mean())
    return {
        "mae": _finite(mae),
        "rmse": _finite(rmse),
        "pearson": _correlation(gold, predicted),
        "spearman": _correlation(rankdata(gold), rankdata(predicted)),
    }


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Pearson's r. None for a constant side, which has nothing to go along with."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    if a.min() == a.max() or b.min() == b.max():
        return None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _finite(np.corrcoef(a, b)[0, 1])


def _finite(value: np.floating[Any] | float) -> float | None:
    return float(value) if math.isfinite(value) else None
