"""The masks by which the page hides personal data in stored tables.

The rows of a masked dataset have the values in some upstream table, and users make more tables of it. Their columns
may have any name. So the page applies a mask to all texts of all tables that are connected with its dataset.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import dagster as dg

from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.core.masks import Mask

__all__ = ["hidden_row", "row_masks"]

_PROVENANCE = "llm_"
# Names of rows and of their partitions, in tables of our own.
_NAMES = ("partition", "case_id", "examples")


def row_masks(specs: Iterable[dg.AssetSpec], datasets: Iterable[Dataset]) -> Mapping[dg.AssetKey, Mask]:
    """Return the mask of each table in which the page hides values."""
    groups = _connected(specs)
    of_group: dict[dg.AssetKey, list[Mask]] = defaultdict(list)
    own: set[dg.AssetKey] = set()
    for dataset in datasets:
        mask = dataset.labeling.mask
        if mask is not None and mask.review == "original":
            own |= {dataset.key, dataset.rejects_key}
        elif mask is not None:
            of_group[groups.get(dataset.key, dataset.key)].append(mask)
    joined = {group: _joined(masks) for group, masks in of_group.items()}
    return {key: joined[group] for key, group in groups.items() if group in joined and key not in own}


def hidden_row(mask: Mask, keys: Iterable[str]) -> Callable[[Mapping[str, Any], str], Mapping[str, Any]]:
    """Return the function that hides values in a row; columns that name rows, such as `keys`, stay."""
    return partial(_hide, mask, frozenset({*keys, *_NAMES}))


def _hide(mask: Mask, names: frozenset[str], columns: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return mask.hide(columns, lambda name: name in names or name == key or name.startswith(_PROVENANCE))


def _joined(masks: list[Mask]) -> Mask:
    """Return a mask that finds the values of each of these."""
    maskers = {masker.name: masker for mask in masks for masker in mask.by}
    return Mask(
        columns=[name for mask in masks for name in mask.columns],
        what=[kind for mask in masks for kind in mask.what],
        by=list(maskers.values()),
    )


def _connected(specs: Iterable[dg.AssetSpec]) -> dict[dg.AssetKey, dg.AssetKey]:
    """Return one asset of its group for each asset. Assets that depend on each other are in one group."""
    first: dict[dg.AssetKey, dg.AssetKey] = {}

    def find(key: dg.AssetKey) -> dg.AssetKey:
        while first.setdefault(key, key) != key:
            key = first[key]
        return key

    for spec in specs:
        find(spec.key)
        for dep in spec.deps:
            first[find(dep.asset_key)] = find(spec.key)
    return {key: find(key) for key in list(first)}
