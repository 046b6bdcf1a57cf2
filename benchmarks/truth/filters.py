"""Filters with precision or recall on public data sets, compared with BARGAIN if it is installed.

python -m benchmarks.truth filters --data FOLDER

The files are those of `public.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.truth.page import Measured, Section, seed_of, table
from benchmarks.truth.public import CONFIDENCE, DataSet, bargain_models, find_installed, read_folder
from dagster_llm_batch.core.thresholds import (
    are_kept,
    choose_sample,
    count_allowed_false,
    count_allowed_lost,
    find_threshold,
    look_confidence,
)

__all__ = ["NAME", "section_of"]

NAME = "filters"

MOST_DRAWS = 100
Kind = Literal["precision", "recall"]
GUARANTEES: tuple[tuple[Kind, float], ...] = (("precision", 0.95), ("precision", 0.9), ("recall", 0.9))
TIMES = (1, 4)
"""The oracle's sample, as a multiple of the usual one. It is BARGAIN's whole budget."""

Flags = NDArray[np.bool_]


def section_of(folder: Path) -> Section:
    """Return the section that measures the data sets of a folder."""
    sets = read_folder(folder)
    return Section(NAME, TEXT, lambda draws, _quick: measure(sets, min(draws, MOST_DRAWS)))


def measure(sets: Sequence[DataSet], draws: int) -> Measured:
    """Measure each data set with `draws` samples."""
    lines: list[list[Any]] = []
    broken: list[str] = []
    # What chance allows for 5 %: three standard errors above.
    most = 1 - CONFIDENCE + 3 * (CONFIDENCE * (1 - CONFIDENCE) / draws) ** 0.5
    has_bargain = find_installed("BARGAIN") is not None
    for data in sets:
        for kind, share in GUARANTEES:
            for times in TIMES:
                sample = choose_sample(len(data.label), share, look_confidence(CONFIDENCE, 1), times=times)
                ways = [partial(_filter, data, kind, share, sample)]
                ways += [partial(_bargain, data, kind, share, sample)] if has_bargain else []
                found = [np.mean([way(seed) for seed in range(draws)], axis=0).round(3) for way in ways]
                if found[0][3] > most:
                    broken.append(f"{data.name}, {kind} {share}: {found[0][3]:.1%} of tables break the guarantee.")
                cells = [value for row in found for value in (*row[:3], 100 * row[3])]
                lines.append([data.name, f"{kind} {share}", sample, *cells])
    head = ["data", "guarantee", "sample"]
    for of in ("ours", "BARGAIN")[: 1 + has_bargain]:
        head += [f"{of}: spared", "precision", "recall", "broken %"]
    return Measured(table(head, lines) + ("" if has_bargain else "\n\nNot installed: bargain."), tuple(broken))


def _judged(data: DataSet, delivered: Flags, spared: float, kind: Kind, share: float) -> tuple[float, ...]:
    right = int((delivered & data.label).sum())
    precision, recall = right / max(1, int(delivered.sum())), right / int(data.label.sum())
    got = precision if kind == "precision" else recall
    # An empty result has no false yes.
    is_broken = got < share and (kind == "recall" or bool(delivered.any()))
    return spared, precision, recall, float(is_broken)


def _filter(data: DataSet, kind: Kind, share: float, sample: int, seed: int) -> tuple[float, ...]:
    """Return the share of rows that our filter spares the oracle, its precision and recall, and whether it breaks."""
    rng, cheap, yes = (
        np.random.default_rng(seed_of((data.name, kind, share, sample, seed))),
        data.proxy >= 0.5,
        data.label,
    )
    drawn = rng.choice(len(yes), sample, replace=False)
    digests = rng.integers(0, 1 << 63, len(yes)).astype(np.uint64)
    confidence, is_precision = look_confidence(CONFIDENCE, 1), kind == "precision"
    if is_precision:
        allowed = count_allowed_false(int((cheap & yes)[drawn].sum()), share, confidence)
    else:
        allowed = count_allowed_lost(int(yes[drawn].sum()), share, confidence)
    errors = (cheap != yes) & (cheap == is_precision)
    place = find_threshold(data.score[drawn], digests[drawn], errors[drawn], allowed)
    kept = are_kept(data.score, digests, place, cheap != is_precision)
    kept[drawn] = False
    return _judged(data, np.where(kept, cheap, yes), float(kept.mean()), kind, share)


def _bargain(data: DataSet, kind: Kind, share: float, budget: int, seed: int) -> tuple[float, ...]:
    """Return the same for BARGAIN."""
    cheap = data.proxy >= 0.5
    name = "BARGAIN_P" if kind == "precision" else "BARGAIN_R"
    process = getattr(importlib.import_module(f"BARGAIN.process.{name}"), name)
    proxy, oracle = bargain_models(data, cheap.astype(int))
    made = process(proxy, oracle, delta=1 - CONFIDENCE, target=share, budget=budget, seed=seed)
    delivered = np.zeros(len(cheap), np.bool_)
    delivered[np.array([*made.process(np.arange(len(cheap)))], int)] = True
    return _judged(data, delivered, 1 - budget / len(cheap), kind, share)


TEXT = f"""## Filters

Filters with precision or recall ([how to](how-to/cascade.md#filters-precision-or-recall)) on the public data sets of
SUPG, with a confidence of {CONFIDENCE:.0%}, compared with [BARGAIN](https://github.com/ucbepic/BARGAIN) (`BARGAIN_P`,
`BARGAIN_R`). Of tacred, 2.4 % of the rows are yes, of onto 2.5 %, and of imagenet 0.1 %. `sample` is the size of our
sample, the usual one or four times as many rows, and BARGAIN's whole budget. `spared` is the share of rows that the
oracle does not answer. The next two columns are the mean precision and recall of the delivered yes.

The methods differ. BARGAIN chooses its rows one after the other, and asks most among the rows with the highest scores.
Ours draws all rows at once, as batches need it. If yes is rare, our sample mostly has too few of it, so the oracle
answers all rows, and little or nothing is spared. With precision, BARGAIN spares more on all three data sets, at a
higher recall than ours if ours spares any. With recall and the usual sample, BARGAIN delivers all rows as yes. With
four times the sample, ours spares less on onto and tacred, and its precision is more than twice as high. On imagenet,
ours spares nothing."""
