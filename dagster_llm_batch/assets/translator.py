"""Changes of asset specs from Python, like the translators of Dagster's own integrations (`DagsterDbtTranslator`).

    factory: own spec ─▶ LLMBatchTranslator.get_asset_spec ─▶ the spec that Dagster gets

The ledger identifies a dataset by the `key_prefix=` and `name=` of its factory, not by the translated asset key. So
rows are not sent or paid again if a translator is added, changed or removed.
"""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import ConfigError

__all__ = [
    "ANNOTATES_KEY",
    "DATASET_KEY",
    "GATHERS_KEY",
    "RESTORED_KEY",
    "ROLE_TAG",
    "SOURCE_KEY",
    "TABLE_KEY",
    "LLMBatchTranslator",
    "LLMBatchTranslatorData",
    "translate_spec",
]

ROLE_TAG = "llm_batch/role"
"""Tag with an asset's role: `batch`, `labels`, `rejects`, `evaluation` or `annotation`. The sensor finds labels and
gold by it.
"""

ANNOTATES_KEY = "llm_batch/annotates"
"""Metadata of gold that the sensor requests: the name, in ledger and command line, of the dataset to be judged."""

DATASET_KEY = "llm_batch/dataset"
"""Metadata of labels: the dataset's name in ledger and command line."""

RESTORED_KEY = "llm_batch/restored_columns"
"""Metadata of a dataset's labels: the columns in which `Mask.restore` puts values of rows."""

GATHERS_KEY = "llm_batch/gathers"
"""Metadata of gathered tables: the dataset whose labels of parts they gather."""

SOURCE_KEY = "llm_batch/source_key"
"""Metadata of gathered tables: the column that identifies a source row."""

TABLE_KEY = "llm_batch/table"
"""Metadata of an evaluation's further tables: the kind, such as `mistakes`, which does not depend on the asset key."""


@checked
@dataclass(frozen=True, kw_only=True)
class LLMBatchTranslatorData:
    """One asset of a factory, before it is translated.

    Attributes:
        spec: The spec without a translator. In its deps, assets of the same factory have their translated keys.
        role: The asset's role: `labels`, `batch` or `rejects`; `evaluation` for the statistics of any evaluation;
            `annotation` for gold; `messages`, `sink` or `student`. For a further table, the end of its name:
            `mistakes`, `per_class`, `accepted`, `cases`, `sample` or `raters`.
        dataset: The asset's dataset or evaluation, by the `key_prefix` and `name` of its factory, as in
            `crm/ticket_labels`. The verdicts of a judge are a separate dataset, `<name>_verdicts`.
    """

    spec: dg.AssetSpec
    role: str
    dataset: str


class LLMBatchTranslator:
    """Changes the specs of a factory's assets, one by one. Override `get_asset_spec`:

    ```python
    class Ours(LLMBatchTranslator):
        def get_asset_spec(self, data):
            spec = super().get_asset_spec(data)
            return spec.replace_attributes(key=spec.key.with_prefix("gold"), group_name=data.role)
    ```
    """

    def get_asset_spec(self, data: LLMBatchTranslatorData) -> dg.AssetSpec:
        """Return the spec of one asset."""
        return data.spec


def translate_spec(translator: LLMBatchTranslator, data: LLMBatchTranslatorData) -> dg.AssetSpec:
    """Return the translated spec, with the tags and metadata that identify it. Raises ConfigError."""
    own, spec = data.spec, translator.get_asset_spec(data)
    place = f"translator={type(translator).__name__}: the spec of {own.key.to_user_string()} (role '{data.role}')"
    if not isinstance(spec, dg.AssetSpec):
        raise ConfigError(
            f"{place} became a {type(spec).__name__}. Return an AssetSpec, as of super().get_asset_spec(data)."
        )
    # Runs, checks and the ledger rely on the factory's partitions.
    if spec.partitions_def != own.partitions_def:
        raise ConfigError(
            f"{place} got other partitions: {spec.partitions_def} for {own.partitions_def}. Give partitions_def= to "
            "the factory, if it has this argument; otherwise the partitions follow from the asset's inputs."
        )
    if spec.key in {dep.asset_key for dep in spec.deps}:
        raise ConfigError(
            f"{place} got the key {spec.key.to_user_string()}, which belongs to an asset it reads. Build each key from "
            "data.spec.key, which differs."
        )
    tags = {name: own.tags[name] for name in (ROLE_TAG,) if name in own.tags}
    metadata = {name: own.metadata[name] for name in (DATASET_KEY, TABLE_KEY) if name in own.metadata}
    # `skippable` stays: a run over several partitions reports its materializations itself, and must not fail if labels
    # are not ready.
    return spec.replace_attributes(skippable=own.skippable).merge_attributes(tags=tags, metadata=metadata)
