"""Resolve the assets that an evaluation reads from the forms in which a user may name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import dagster as dg

from dagster_llm_batch.arguments import unknown_name
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.assets.keys import Upstream, only_key, upstream_key
from dagster_llm_batch.assets.translator import ROLE_TAG
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import Target

__all__ = ["Candidate", "Candidates", "Scale", "candidates_of", "check_targets", "is_external", "targets_of"]

Scale = Literal["categorical", "ordinal", "numeric"]
"""Values of a factory's `kind`. In a Target, `ordinal` becomes the `Kind` categorical, with weights for kappa."""


def is_external(upstream: Upstream | None) -> bool:
    """Return whether an asset is assumed to exist, as an unpartitioned AssetSpec is.

    It has no definition that a run could materialize, so a condition that waits for it would wait forever. Dagster
    records the state of all other assets.
    """
    return isinstance(upstream, dg.AssetSpec) and upstream.partitions_def is None


def targets_of(
    target: str | Target | Sequence[str | Target],
    gold_target: str | Mapping[str, str] | None,
    kind: Scale | Mapping[str, Scale],
    confidence: str | Mapping[str, str] | None = None,
) -> tuple[Target, ...]:
    """Return the targets that these arguments of `evaluation_assets` declare. Raises ConfigError."""
    given = [target] if isinstance(target, str | Target) else list(target)
    names = [declared if isinstance(declared, str) else declared.name for declared in given]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"target={', '.join(names) or 'nothing'}: an evaluation needs at least one, and each once.")
    if isinstance(gold_target, str) and len(names) > 1:
        raise ConfigError(
            f"gold_target={gold_target!r} with {len(names)} targets: use a mapping from {', '.join(names)}."
        )
    golds = {names[0]: gold_target} if isinstance(gold_target, str) else dict(gold_target or {})
    kinds: dict[str, Any] = dict(kind) if isinstance(kind, Mapping) else dict.fromkeys(names, kind)
    sure = dict(confidence) if isinstance(confidence, Mapping) else {}
    if strangers := sorted({*golds, *kinds, *sure} - set(names)):
        raise ConfigError(
            f"gold_target=, kind= or confidence= names {', '.join(strangers)}, which are no targets. "
            f"Targets: {', '.join(names)}."
        )
    targets = []
    for declared, name in zip(given, names, strict=True):
        scale = kinds.get(name, "categorical")
        # one confidence column for all is meant for classes: a number is near or far, which a confidence does not
        # measure
        certainty = confidence if isinstance(confidence, str) and scale != "numeric" else sure.get(name)
        if isinstance(declared, Target):
            if isinstance(kind, Mapping) and name in kind and kind[name] != _scale_of(declared):
                raise ConfigError(
                    f"kind= names '{name}' as {kind[name]}, and its Target is {_scale_of(declared)}. Say it in the "
                    "Target alone."
                )
            everywhere = isinstance(confidence, str)
            has_one = everywhere and (declared.confidence_column is not None or declared.kind == "numeric")
            targets.append(
                replace(
                    declared,
                    gold_column=_only(declared, "gold_column", "gold_target", golds.get(name)),
                    confidence_column=_only(
                        declared, "confidence_column", "confidence", None if has_one else certainty
                    ),
                )
            )
        elif scale == "ordinal":
            targets.append(Target(name, golds.get(name), kappa_weights="quadratic", confidence_column=certainty))
        else:
            targets.append(Target(name, golds.get(name), kind=scale, confidence_column=certainty))
    return tuple(targets)


def _scale_of(target: Target) -> Scale:
    return "ordinal" if target.kappa_weights else target.kind


def _only(target: Target, field_name: str, argument: str, given: str | None) -> str | None:
    """Return the column that a Target names, or else an argument. Raises ConfigError if both do, and differ."""
    declared: str | None = getattr(target, field_name)
    if declared is not None and given is not None and declared != given:
        raise ConfigError(
            f"Target '{target.name}' has {field_name}={declared!r}, and {argument}= names {given!r} for it. Name the "
            "column in one of them."
        )
    return given if declared is None else declared


Candidates = (
    Upstream
    | Sequence[Upstream | Sequence[dg.AssetsDefinition]]
    | Mapping[str, Upstream | Sequence[dg.AssetsDefinition]]
)


@dataclass(frozen=True)
class Candidate:
    """A measured asset with labels.

    - `rejects`: asset with the rows without a label; None if unknown.
    - `keep`: columns that its definition keeps of the rows; () if only its key is known.
    - `is_whole`: its definition has no partitions, so that it has nothing to read before it is materialized.
    - `reader`: reader of its response, if its definition is known.
    - `restored`: columns in which its labels have values of rows in the place of placeholders; () if only its key is
      known.
    """

    name: str
    key: dg.AssetKey
    rejects: dg.AssetKey | None = None
    keep: tuple[str, ...] = ()
    is_whole: bool = field(default=False, repr=False)
    reader: Reader | None = field(default=None, repr=False, compare=False)
    # Code versions are digests of the repr, and a judge with the right mask asks the same of restored labels.
    restored: tuple[str, ...] = field(default=(), repr=False, compare=False)


def candidates_of(
    given: Candidates, rejects: Mapping[str, Upstream], targets: Sequence[str] = ()
) -> tuple[Candidate, ...]:
    """Return candidates in order, named as in a mapping, else by the last part of the asset key. Raises ConfigError,
    also for one of `targets` that a candidate will not have, where its definition is known.
    """
    if isinstance(given, Mapping):
        candidates = [_candidate(asset, targets, str(name)) for name, asset in given.items()]
    elif isinstance(given, str | dg.AssetKey | dg.AssetSpec | dg.AssetsDefinition):
        candidates = [_candidate(given, targets)]
    else:
        candidates = [_candidate(asset, targets) for asset in given if _roles(asset) != {"batch"}]
    candidates = [
        replace(candidate, rejects=upstream_key(rejects[candidate.name])) if candidate.name in rejects else candidate
        for candidate in candidates
    ]
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        keys = ", ".join(candidate.key.to_user_string() for candidate in candidates)
        raise ConfigError(
            f"candidates are {keys or 'empty'}: an evaluation needs at least one, each with its own name. "
            "If asset keys end alike, use candidates={'name': asset}."
        )
    if strangers := sorted(set(rejects) - set(names)):
        raise ConfigError(
            f"rejects= names {', '.join(strangers)}, which are no candidates. Candidates: {', '.join(names)}."
        )
    return tuple(candidates)


def check_targets(targets: Sequence[str], columns: Sequence[str], owner: dg.AssetKey) -> None:
    """Raise ConfigError for a target that is missing from the columns of its owner."""
    for target in targets:
        if target not in columns:
            raise ConfigError(
                f"target={target!r} of {owner.to_user_string()}: {unknown_name('column', target, columns)}"
            )


def _candidate(given: Any, targets: Sequence[str], name: str | None = None) -> Candidate:
    """Return one candidate. Definitions of `llm_batch_assets`, alone or as the list it returns, stand for labels and
    rejects.
    """
    definitions = [given] if isinstance(given, dg.AssetsDefinition) else given
    # An AssetKey is a tuple, too, that does not let itself be iterated.
    is_several = isinstance(definitions, list | tuple) and not isinstance(definitions, dg.AssetKey)
    if is_several and all(isinstance(definition, dg.AssetsDefinition) for definition in definitions):
        specs = [spec for definition in definitions for spec in definition.specs]
        by_role = {spec.tags[ROLE_TAG]: spec.key for spec in specs if ROLE_TAG in spec.tags}
        key = by_role.get("labels") or only_key([spec.key for spec in specs])
        is_whole = next(spec for spec in specs if spec.key == key).partitions_def is None
        if "labels" not in by_role:
            return Candidate(name or key.path[-1], key, by_role.get("rejects"), is_whole=is_whole)
        dataset = dataset_of(definitions)
        labeling = dataset.labeling
        # Columns of provenance, which begin with llm_, are in every table of labels.
        own = [target for target in targets if not target.startswith("llm_")]
        check_targets(own, [labeling.key, *labeling.keep, *labeling.reader.schema.names], key)
        rejects, keep = by_role.get("rejects"), tuple(labeling.keep)
        return Candidate(name or key.path[-1], key, rejects, keep, is_whole, labeling.reader, tuple(dataset.restored))
    key = upstream_key(given)
    return Candidate(name or key.path[-1], key)


def _roles(given: object) -> set[str | None]:
    """Return the roles of an asset: `{"batch"}` for the submission that `llm_batch_assets` returns with the labels."""
    return {spec.tags.get(ROLE_TAG) for spec in given.specs} if isinstance(given, dg.AssetsDefinition) else set()
