"""Specs changed from Python, as Dagster's own integrations let users do it (`DagsterDbtTranslator` and its kin).

    factory: own spec ─▶ LLMBatchTranslator.get_asset_spec ─▶ the spec that Dagster gets

The ledger knows a dataset by the `key_prefix=` and `name=` of its factory, whatever its asset key is translated to: a
translator that is added, changed or taken away makes no rows be asked, or paid for, again.
"""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import ConfigError

__all__ = [
    "ANNOTATES_KEY",
    "DATASET_KEY",
    "ROLE_TAG",
    "TABLE_KEY",
    "LLMBatchTranslator",
    "LLMBatchTranslatorData",
    "translate_spec",
]

ROLE_TAG = "llm_batch/role"
"""Tag that says what an asset is here: `batch`, `labels`, `rejects`, `evaluation` or `annotation`. The sensor finds
labels and gold by it.
"""

ANNOTATES_KEY = "llm_batch/annotates"
"""Metadata of gold that the sensor asks for: what ledger and command line call the dataset whose rows people judge."""

DATASET_KEY = "llm_batch/dataset"
"""Metadata of labels: what ledger and command line call the dataset."""

TABLE_KEY = "llm_batch/table"
"""Metadata of a table beside the main one of an evaluation, as in `mistakes`: what it is, whatever its key."""


@checked
@dataclass(frozen=True, kw_only=True)
class LLMBatchTranslatorData:
    """One asset of a factory, before it is translated.

    Attributes:
        spec: As it is without a translator. Assets of the same factory that it reads have their translated keys.
        role: What it is: `labels`, `batch`, `rejects`; `evaluation` for the figures of any evaluation; `annotation` for
            gold; for a table beside the main one the end of its name, as in `mistakes`, `per_class`, `accepted`,
            `cases`, `sample`, `raters`; and `messages`, `sink` or `student`.
        dataset: The dataset or evaluation that it belongs to, by the `key_prefix` and `name` of its factory, as in
            `crm/ticket_labels`. The verdicts of a judge are a dataset of their own, `<name>_verdicts`.
    """

    spec: dg.AssetSpec
    role: str
    dataset: str


class LLMBatchTranslator:
    """Changes the specs of a factory's assets, each by itself. Override `get_asset_spec`:

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
    """Return the translated spec, with the marks that sensor and command line find it by. Raises ConfigError."""
    own, spec = data.spec, translator.get_asset_spec(data)
    place = f"translator={type(translator).__name__}: the spec of {own.key.to_user_string()} (role '{data.role}')"
    if not isinstance(spec, dg.AssetSpec):
        raise ConfigError(
            f"{place} became a {type(spec).__name__}. Return an AssetSpec, as of super().get_asset_spec(data)."
        )
    # Runs, checks and the ledger go by the partitions of the factory.
    if spec.partitions_def != own.partitions_def:
        raise ConfigError(
            f"{place} got other partitions: {spec.partitions_def} for {own.partitions_def}. Give partitions_def= to "
            "the factory where it takes one; else they follow from what the asset reads."
        )
    if spec.key in {dep.asset_key for dep in spec.deps}:
        raise ConfigError(
            f"{place} got the key {spec.key.to_user_string()}, which is that of an asset it reads. Make each key of "
            "data.spec.key, which differs."
        )
    tags = {name: own.tags[name] for name in (ROLE_TAG,) if name in own.tags}
    metadata = {name: own.metadata[name] for name in (DATASET_KEY, TABLE_KEY) if name in own.metadata}
    # A run over several partitions says by itself which have landed, and labels that are not there yet are no failure.
    return spec.replace_attributes(skippable=own.skippable).merge_attributes(tags=tags, metadata=metadata)
