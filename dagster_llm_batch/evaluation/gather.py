"""One row for each split text: the labels of its parts, gathered.

This module must not have `from __future__ import annotations`: Dagster reads annotations.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Unpack

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.assets.translator import GATHERS_KEY, SOURCE_KEY
from dagster_llm_batch.core.fixed_responses import Embedding, Moderation
from dagster_llm_batch.core.gather import Gather, Gatherer
from dagster_llm_batch.core.split import PART_COLUMNS, PART_KEY
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import AssetOptions, Computed, EvaluationBuilder, Tables, code_digest
from dagster_llm_batch.evaluation.stored_tables import StoredTables

__all__ = ["gathered_labels"]

_DOCS = {
    "llm_outcome": "succeeded; of a reject, the outcome of its first failed part",
    "llm_cost_usd": "sum of its parts, rejected ones included; null if one is unknown",
    "llm_parts": "each part with its own provenance, in order",
    "llm_reason": "the parts without a label, each with its reason",
}


@checked_options(AssetOptions, EvaluationBuilder)
def gathered_labels(
    *,
    name: str,
    labels: Sequence[dg.AssetsDefinition],
    key: str,
    gather: Gather,
    keep: Sequence[str] = (),
    **options: Unpack[AssetOptions],
) -> list[dg.AssetsDefinition]:
    """Declare one labeled row for each source row whose parts a dataset labels.

        labels and rejects of parts (`split_rows`) ─▶ <name>           rows whose parts all have a label
                                                      <name>_rejects   all other rows, with the reasons of their parts

    Each source row is in one of the two tables, with one outcome and one price: the sum of its parts, rejected parts
    included. `llm_parts` names the parts, each with its own provenance. It asks no model and costs nothing. The parts
    of one partition are in memory, without their texts.

    Args:
        name: Name of the table.
        labels: Return value of `llm_batch_assets` for the parts. Its key is `part_key`, and its `keep` has `key`,
            `part`, `parts` and `part_start`.
        key: The column that identifies a source row.
        gather: The rule that makes one answer of the parts' answers.
        keep: Other columns of the source rows in the tables; the dataset keeps them, too.
        options: Dagster's own, as for `evaluation_assets`. By default it follows new labels of the parts.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    dataset = dataset_of(labels)
    labeling, of = dataset.labeling, dataset.key.to_user_string()
    needed = [key, *keep, *(column for column in PART_COLUMNS.names if column != PART_KEY)]
    if labeling.key != PART_KEY or not set(needed) <= set(labeling.keep):
        raise ConfigError(
            f"{of} has the key {labeling.key!r} and keeps {', '.join(labeling.keep) or 'nothing'}. To gather its parts "
            f"it needs key={PART_KEY!r} and keep={needed!r}, from rows of split_rows."
        )
    if labeling.cascade is not None or isinstance(labeling.response, Embedding | Moderation):
        raise ConfigError(
            f"{of} is a cascade, or makes embeddings or moderations. These are not gathered: a cascade's guarantee is "
            "about parts and not about rows. Label the parts by one model with a response schema, or use the parts."
        )
    gatherer = Gatherer(gather, key, keep, labeling.reader.schema, labeling.quoted_columns)
    builder = EvaluationBuilder(
        name=name,
        partitions_def=dataset.partitions_def,
        backfill_policy=dataset.backfill_policy,
        frame=dataset.frame,
        io_manager_key=dataset.io_manager_key,
        role="gathered",
        **options,
    )
    deps = [dataset.key, dataset.rejects_key]
    version = code_digest(labeling.code_version, key, keep, gather)
    follow = builder.follow(deps, not_awaited=[dataset.rejects_key])
    specs = {
        suffix: builder.spec(
            f"{what} of {of}, gathered into one for each row.",
            suffix=suffix,
            deps=deps,
            kinds={"table"},
            code_version=version,
            follow=follow,
        ).merge_attributes(metadata={GATHERS_KEY: dataset.name, SOURCE_KEY: key})
        for suffix, what in (("", "Labels of parts"), ("rejects", "Rejects and labels of parts"))
    }

    def prepare(context: dg.AssetExecutionContext) -> Callable[[str | None], Tables]:
        stored, hint = StoredTables(context), "See key= and keep=."

        def compute(partition: str | None) -> Tables:
            @cache
            def tables() -> tuple[pa.Table, pa.Table]:
                return gatherer.gather(
                    stored.read(dataset.key, partition, gatherer.read, hint=hint),
                    stored.read(dataset.rejects_key, partition, [*gatherer.read_of_rejects, "llm_reason"], hint=hint),
                )

            def one(number: int) -> Computed:
                counts = zip(("succeeded", "rejected"), map(len, tables()), strict=True)
                metadata = {f"llm_batch/rows_{outcome}": count for outcome, count in counts}
                return Computed(tables()[number], metadata, _DOCS)

            return {"": lambda: one(0), "rejects": lambda: one(1)}

        return compute

    return [builder.asset(specs, prepare)]
