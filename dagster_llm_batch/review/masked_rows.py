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

__all__ = ["hidden_row", "hidden_text", "row_keys", "row_masks"]

_PROVENANCE = "llm_"
# Texts of the model, or with parts of them.
_SAID = ("llm_reply", "llm_reason", "llm_cheap_label")
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


def row_keys(specs: Iterable[dg.AssetSpec], datasets: Iterable[Dataset]) -> Mapping[dg.AssetKey, tuple[str, ...]]:
    """Return for each table the keys of the datasets that it is connected with."""
    groups = _connected(specs)
    of_group: dict[dg.AssetKey, dict[str, None]] = defaultdict(dict)
    for dataset in datasets:
        of_group[groups.get(dataset.key, dataset.key)][dataset.labeling.key] = None
    return {key: tuple(of_group[group]) for key, group in groups.items() if group in of_group}


def hidden_row(mask: Mask, *, is_ours: bool) -> Callable[[Mapping[str, Any], str], Mapping[str, Any]]:
    """Return the function that hides values in a row, given its key column.

    The key stays, and in tables of this package the columns that name rows or have no text of a row. Columns that the
    mask names never stay.
    """
    return partial(_hide, mask, is_ours)


def hidden_text(mask: Mask, own: Mask | None) -> Callable[[Any], Any] | None:
    """Return the function that hides values in requests and replies of a dataset with its own mask.

    None if these have placeholders for all values that `mask` finds.
    """
    if own is not None and own.settings() == mask.settings():
        return None
    return partial(_hide_text, mask)


def _hide(mask: Mask, is_ours: bool, columns: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    def stays(name: str) -> bool:
        if name in mask.columns:
            return False
        is_name = name in _NAMES or (name.startswith(_PROVENANCE) and name not in _SAID)
        return name == key or (is_ours and is_name)

    return mask.hide(columns, stays)


def _hide_text(mask: Mask, value: Any) -> Any:
    return mask.hide({"": value}, lambda _name: False)[""]


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
