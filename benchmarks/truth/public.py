"""Cascades and estimates on public data sets, compared with BARGAIN, ppi-python and glide-py if they are installed.

python -m benchmarks.truth public --data FOLDER

Each `NAME.csv` in the folder is a data set with a row for each item. Its column `label` is 0 or 1, by the expensive
model, and `proxy_score` is the cheap model's probability of 1. SUPG's data sets have this form, but are not included.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.truth.page import Measured, Section, seed_of, table
from dagster_llm_batch.core.thresholds import are_above, choose_sample, count_allowed, find_threshold, look_confidence
from dagster_llm_batch.metrics.estimates import power
from dagster_llm_batch.metrics.gold_weights import SampledRows

__all__ = ["CONFIDENCE", "NAME", "DataSet", "bargain_models", "find_installed", "read_folder", "section_of"]

NAME = "public"

CONFIDENCE, MOST_DRAWS = 0.95, 100
AGREEMENTS, LABELS = (0.98, 0.99, 0.995), (100, 400)

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class DataSet:
    """The expensive model's label of each item, and the cheap model's probability of it."""

    name: str
    label: Flags
    proxy: Numbers

    @property
    def wrong(self) -> Flags:
        """Flags of the items whose labels differ between the models."""
        return np.asarray((self.proxy >= 0.5) != self.label)

    @property
    def score(self) -> Numbers:
        """The cheap model's confidence."""
        return np.maximum(self.proxy, 1 - self.proxy)


def read_folder(folder: Path) -> list[DataSet]:
    """Read all data sets of a folder, by name. Raises SystemExit for a wrong file, which is a command's input."""
    found = []
    for path in sorted(folder.glob("*.csv")):
        values = pl.read_csv(path)
        if missing := sorted({"label", "proxy_score"} - set(values.columns)):
            raise SystemExit(f"{path} has no column {', '.join(missing)}. Give it label (0 or 1) and proxy_score.")
        label, proxy = (values[name].cast(pl.Float64, strict=False).to_numpy() for name in ("label", "proxy_score"))
        if not (np.isin(label, (0, 1)).all() and ((proxy >= 0) & (proxy <= 1)).all()):
            raise SystemExit(f"{path}: label is 0 or 1, and proxy_score from 0 to 1, in each row. Mend the file.")
        found.append(DataSet(path.stem, label == 1, proxy))
    if not found:
        raise SystemExit(f"{folder} has no CSV file. Put tacred.csv, onto.csv and imagenet.csv there.")
    return found


def section_of(folder: Path) -> Section:
    """Return the section that measures the data sets of a folder."""
    sets = read_folder(folder)
    return Section(NAME, TEXT, lambda draws, _quick: measure(sets, min(draws, MOST_DRAWS)))


def measure(sets: Sequence[DataSet], draws: int) -> Measured:
    """Measure each data set with `draws` samples."""
    cascades, estimates = [], []
    bargain, ppi, glide = map(find_installed, ("BARGAIN", "ppi_py", "glide.estimators"))
    for data in sets:
        for agreement in AGREEMENTS:
            ours = _repeat(draws, partial(_cascade, data, agreement))
            theirs = None if bargain is None else _repeat(draws, partial(_bargain, data, agreement))
            cascades.append([data.name, len(data.label), agreement, *_row(ours), *_row(theirs)])
        for labels in LABELS:
            drawn = [
                ("ours", _ours),
                *([("ppi-python", _ppi)] if ppi else []),
                *([("glide-py", _asi)] if glide else []),
            ]
            for name, estimate in drawn:
                missed, width = _repeat(draws, partial(estimate, data, labels))
                estimates.append([data.name, labels, name, 100 * missed, width])
    head = ["data", "rows", "agreement", "ours: spared", "broken %", "BARGAIN: spared", "broken %"]
    lacking = [name for name, of in (("bargain", bargain), ("ppi-python", ppi), ("glide-py", glide)) if of is None]
    note = f"\n\nNot installed, and so not compared: {', '.join(lacking)}." if lacking else ""
    figures = table(["data", "labels", "interval of", "misses %", "mean width"], estimates)
    return Measured(f"{table(head, cascades)}\n\n{figures}{note}", ())


def find_installed(name: str) -> Any:
    """Return a module, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _repeat(draws: int, measured: Callable[[int], tuple[float, float]]) -> tuple[float, float]:
    first, second = np.mean([measured(seed) for seed in range(draws)], axis=0)
    return float(first), float(second)


def _row(found: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return (None, None) if found is None else (found[0], 100 * found[1])


def _rng(data: DataSet, *what: object) -> np.random.Generator:
    return np.random.default_rng(seed_of((data.name, *what)))


def _cascade(data: DataSet, agreement: float, seed: int) -> tuple[float, float]:
    """Return the share of rows that our cascade spares the oracle, and whether it breaks the guarantee."""
    rng, rows = _rng(data, agreement, seed), len(data.label)
    first = look_confidence(CONFIDENCE, 1)
    drawn = rng.choice(rows, choose_sample(rows, agreement, first), replace=False)
    digests = rng.integers(0, 1 << 63, rows).astype(np.uint64)
    allowed = count_allowed(len(drawn), rows, agreement, first)
    place = find_threshold(data.score[drawn], digests[drawn], data.wrong[drawn], allowed)
    accepted = are_above(data.score, digests, place)
    accepted[drawn] = False
    return float(accepted.mean()), float((accepted & data.wrong).mean() > 1 - agreement)


def bargain_models(data: DataSet, predictions: NDArray[Any]) -> tuple[Any, Any]:
    """Return the cheap and the expensive model for BARGAIN, whose records are the row numbers.

    `predictions` are the cheap model's, by row.
    """
    package = importlib.import_module("BARGAIN")

    def predict(_self: Any, rows: Any, _records: Any) -> Any:
        return predictions[rows], data.score[rows]

    def answer(_self: Any, records: Any, _rows: Any = None) -> Any:
        return data.label[records]

    def judge(_self: Any, _rows: Any, records: Any, outputs: Any) -> Any:
        return data.label[records] == outputs

    proxy = type("Cheap", (package.Proxy,), {"get_preds_and_scores": predict})(verbose=False)
    oracle = type("Dear", (package.Oracle,), {"get_pred": answer, "is_answer_correct": judge})(verbose=False)
    return proxy, oracle


def _bargain(data: DataSet, agreement: float, seed: int) -> tuple[float, float]:
    """Return the same for BARGAIN."""
    package, cheap = importlib.import_module("BARGAIN"), data.proxy >= 0.5
    proxy, oracle = bargain_models(data, cheap)
    process = package.BARGAIN_A(proxy, oracle, target=agreement, delta=1 - CONFIDENCE, verbose=False, seed=seed)
    labels, is_oracles = map(np.array, process.process(np.arange(len(cheap)), return_oracle_usage=True))
    return float(1 - is_oracles.mean()), float((labels == data.label).mean() < agreement)


def _judged(data: DataSet, low: float, high: float) -> tuple[float, float]:
    return float(not low <= data.label.mean() <= high), high - low


def _ours(data: DataSet, labels: int, seed: int) -> tuple[float, float]:
    """Return whether our interval of the share of 1 misses, and its width, for equally drawn rows."""
    rows, drawn = len(data.label), _drawn(data, labels, seed)
    y, f = data.label[drawn].astype(float), (data.proxy >= 0.5).astype(float)
    weight = np.full(labels, rows / labels)
    known = SampledRows(weight, weight * (weight - 1) * labels / (labels - 1), np.arange(labels))
    found = power(y, f[drawn], f, known, ends=(0.0, 1.0))
    figure = found.powered.figure(found.n_eff, (0.0, 1.0))
    assert figure.low is not None
    assert figure.high is not None
    return _judged(data, figure.low, figure.high)


def _ppi(data: DataSet, labels: int, seed: int) -> tuple[float, float]:
    """Return the same for ppi-python, with the same rows."""
    drawn = _drawn(data, labels, seed)
    f, rest = (data.proxy >= 0.5).astype(float), np.ones(len(data.label), np.bool_)
    rest[drawn] = False
    y = data.label[drawn].astype(float)
    low, high = importlib.import_module("ppi_py").ppi_mean_ci(y, f[drawn], f[rest], alpha=1 - CONFIDENCE)
    return _judged(data, float(np.ravel(low)[0]), float(np.ravel(high)[0]))


def _asi(data: DataSet, labels: int, seed: int) -> tuple[float, float]:
    """Return the same for glide-py's active statistical inference, which draws rows where the model is unsure."""
    sampler = importlib.import_module("glide.samplers").ActiveSampler()
    unsure = np.maximum(1 - data.score, 0.01)
    pi, xi = sampler.sample(unsure, labels, random_seed=seed_of((data.name, labels, seed)))
    y = np.where(xi == 1, data.label.astype(float), np.nan)
    estimator = importlib.import_module("glide.estimators").ASIMeanEstimator()
    found = estimator.estimate(y, data.proxy, pi, confidence_level=CONFIDENCE).confidence_interval
    return _judged(data, float(found.lower_bound), float(found.upper_bound))


def _drawn(data: DataSet, labels: int, seed: int) -> NDArray[np.int64]:
    return _rng(data, labels, seed).choice(len(data.label), labels, replace=False)


TEXT = f"""## Public data sets

The data sets are from SUPG ([paper](https://arxiv.org/abs/2004.00827),
[code](https://github.com/stanford-futuredata/supg)): `tacred`, `onto` and `imagenet`, from the given folder. Their
labels come from TACRED and OntoNotes (licenses of the Linguistic Data Consortium) and ImageNet (research only), so
they are not in this repository. The expensive model's labels serve as the oracle's.

The first table shows the share of rows that the oracle is spared, and the share of failures: fewer labels agree than
guaranteed, with a confidence of {CONFIDENCE:.0%}. It compares our cascade, with the sample of `sample="auto"`, and
[BARGAIN](https://github.com/ucbepic/BARGAIN) (`BARGAIN_A`). If the cheap model is nearly perfect, as on imagenet,
the sample is a fixed cost, and BARGAIN spares more. The second table compares 95 % intervals of the share of 1:
ours, PPI++ of [ppi-python](https://github.com/aangelopoulos/ppi_py), and the active statistical inference of
[glide-py](https://github.com/EmertonData/glide). `requirements/truth.txt` has their versions."""
