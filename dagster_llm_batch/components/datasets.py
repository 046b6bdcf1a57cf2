"""A labeled dataset of the project, as other components name it: by its asset key, or by where Python has it."""

from __future__ import annotations

from typing import Any

import dagster as dg

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.components.batch import LLMBatchComponent
from dagster_llm_batch.components.resolution import import_object, pointing_at, templated
from dagster_llm_batch.errors import ConfigError

__all__ = ["LABELS"]


def _labels(context: dg.ResolutionContext, given: str) -> list[dg.AssetsDefinition]:
    name = str(templated(context, given))
    with pointing_at(context):
        if "." in name:
            found = import_object(context, name)
            definitions = [found] if isinstance(found, dg.AssetsDefinition) else found
            if not isinstance(definitions, list | tuple):
                raise ConfigError(f"{name!r} is a {type(found).__name__}; give what llm_batch_assets returned.")
            dataset_of(definitions)  # refuses here, where the line is known
            return list(definitions)
    tree = dg.ComponentLoadContext.from_resolution_context(context).component_tree
    known = {
        dataset_of(component.assets).key.to_user_string(): component.assets
        for component in tree.get_all_components(LLMBatchComponent)
    }
    with pointing_at(context):
        if name not in known:
            raise ConfigError(
                f"{name!r} is no labeled dataset in this project's YAML; it has: {', '.join(sorted(known)) or 'none'}. "
                "One that is defined in Python is named by its import path, as 'package.module.ticket_labels'."
            )
        return known[name]


LABELS: Any = dg.Resolver(
    _labels,
    model_field_type=str,
    description=(
        "Key of a labeled dataset that this project has in YAML, or the import path of what `llm_batch_assets` "
        "returned. Rows, prompt, model and partitions are its."
    ),
    examples=["ticket_labels", "shop.labels.ticket_labels"],
    inject_before_resolve=False,
)
