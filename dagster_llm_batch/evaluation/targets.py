"""What is compared, however it was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import Target

__all__ = ["Kind", "targets_of"]

Kind = Literal["categorical", "ordinal", "numeric"]


def targets_of(
    target: str | Target | Sequence[str | Target],
    gold_target: str | Mapping[str, str] | None,
    kind: Kind | Mapping[str, Kind],
    confidence: str | Mapping[str, str] | None = None,
) -> tuple[Target, ...]:
    """As the arguments of `evaluation_assets` of these names say. Raises ConfigError."""
    given = [target] if isinstance(target, str | Target) else list(target)
    names = [one if isinstance(one, str) else one.name for one in given]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"target={names}: an evaluation needs at least one, and each once.")
    if isinstance(gold_target, str) and len(names) > 1:
        raise ConfigError(f"gold_target={gold_target!r} with {len(names)} targets: use a mapping from {names}.")
    golds = {names[0]: gold_target} if isinstance(gold_target, str) else dict(gold_target or {})
    kinds: dict[str, Any] = dict(kind) if isinstance(kind, Mapping) else dict.fromkeys(names, kind)
    sure = dict(confidence) if isinstance(confidence, Mapping) else {}
    if strangers := sorted({*golds, *kinds, *sure} - set(names)):
        raise ConfigError(
            f"gold_target=, kind= or confidence= names {strangers}, which are no targets. Targets: {names}."
        )
    found = []
    for one, named in zip(given, names, strict=True):
        which = kinds.get(named, "categorical")
        column = confidence if isinstance(confidence, str) and which != "numeric" else sure.get(named)
        if isinstance(one, Target):
            found.append(one)
        elif which == "ordinal":
            found.append(Target(named, golds.get(named), kappa_weights="quadratic", confidence_column=column))
        else:
            found.append(Target(named, golds.get(named), kind=which, confidence_column=column))
    return tuple(found)
