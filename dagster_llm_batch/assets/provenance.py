"""The tags by which Dagster detects that a partition's labels belong to an earlier definition."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from dagster_llm_batch._dagster_private import input_versions, newest_storage_ids, provenance_tags
from dagster_llm_batch.assets.partitions import is_of_range, partitions_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dagster as dg

    from dagster_llm_batch.loop.deployment import SentDefinition
    from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["Provenance"]

_CODE_VERSION = "dagster/code_version"


class Provenance:
    """The provenance of the partitions that one run materializes.

    Dagster adds these tags, but not in a run over several partitions: such partitions would look fresh under any
    definition. Dagster also cannot detect that labels were requested by an earlier definition.
    """

    def __init__(self, context: dg.AssetExecutionContext, batch: dg.AssetKey) -> None:
        self._context = context
        self._batch = batch
        self._is_of_range = is_of_range(context)

    def tags(
        self, asset: dg.AssetKey, partition: str | None, submission: Submission, sent: SentDefinition
    ) -> Mapping[str, str]:
        """Return the tags of one materialization, whose labels were requested by the definition `sent`."""
        version = None
        if sent.changes:
            version = sent.labeling.code_version if sent.is_known else submission.config_fingerprint
        if not self._is_of_range:
            return {} if version is None else {_CODE_VERSION: version}
        version = version or self._context.assets_def.code_versions_by_key.get(asset)
        if version is None:
            return {}
        own = (submission.fingerprint, self._pointers.get(partition or ""))
        # With restored values, labels depend on the rows, too.
        return provenance_tags(version, {self._batch: own, **input_versions(self._context, asset, self._batch)})

    @cached_property
    def _pointers(self) -> Mapping[str, int]:
        """The newest materialization of each partition's submission."""
        return newest_storage_ids(self._context.instance, self._batch, set(partitions_of(self._context)))
