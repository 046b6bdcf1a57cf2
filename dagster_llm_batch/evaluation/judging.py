"""The assets of a judge, of either kind: what is asked, the labeled dataset that asks it, and the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.assets import ROLE_TAG, RowsContext, llm_batch_assets
from dagster_llm_batch.assets.naming import Upstream, key_beside, upstream_key
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.automation import follow
from dagster_llm_batch.evaluation.builder import Computed, Tabling, code_digest
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.evaluation.judgments import CASE_DOCS
from dagster_llm_batch.evaluation.stored_tables import StoredTables, stacked
from dagster_llm_batch.metrics.numeric import ANSWERS, CASE_ID, JUDGE_COLUMNS

__all__ = ["Figures", "Judge", "instructed", "response_schema"]

_BEFORE_ASKING = dg.BackfillPolicy.multi_run(max_partitions_per_run=100)
"""Another policy than that of asking keeps the two in runs of their own: in a run over several partitions, what is
downstream of tables that are stored one by one is skipped.
"""

Figures = Callable[[pa.Table, pa.Table], Computed]
"""From cases and what was said of them to what `<name>` stores."""


def instructed(prompt: Prompt, instruction: str, answers: Sequence[str]) -> Prompt:
    """The prompt, saying how to answer. Raises ConfigError where it shows no answer, or could tell whose they are."""
    told = replace(prompt, system=f"{prompt.system}\n\n{instruction}" if prompt.system else instruction)
    columns = told.columns()
    if columns is None:
        raise ConfigError("prompt must name its columns: {{ row }} would show whose answers they are.")
    if lacking := [name for name in answers if name not in columns]:
        raise ConfigError(f"prompt does not show {lacking}. Its variables: {', '.join(sorted(columns))}.")
    if telling := sorted(columns & {*JUDGE_COLUMNS}):
        raise ConfigError(f"prompt reads {telling}, which tell whose answers it is shown. Leave them out.")
    return told


def response_schema(title: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """The reason comes first, so that what follows is said with it in mind."""
    reason = {"type": "string", "description": "Why, in one or two sentences."}
    asked = {"reason": reason, **properties}
    return {
        "title": title,
        "type": "object",
        "properties": asked,
        "required": list(asked),
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Judge:
    """One judge. `own_columns` are those of a case beside its id, the key and the columns of the rows; `keep` are those
    of them that its verdict carries. Rows from outside of Dagster, given as an unpartitioned AssetSpec, are taken to be
    there.
    """

    key: dg.AssetKey
    rows: Upstream
    candidates: tuple[Candidate, ...]
    join_key: str
    targets: tuple[str, ...]
    prompt: Prompt
    own_columns: tuple[str, ...]
    keep: tuple[str, ...]
    cases: Callable[..., pa.Table]
    sample: int | None
    seed: int
    tabling: Tabling

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigError("target is empty: a judge needs a column with answers.")
        if self.sample is not None and self.sample < 1:
            raise ConfigError(f"sample={self.sample!r} cannot be; it is at least 1, or left out to judge all rows.")

    @property
    def cases_key(self) -> dg.AssetKey:
        return key_beside(self.key, "cases")

    @property
    def verdicts_key(self) -> dg.AssetKey:
        return key_beside(self.key, "verdicts")

    @property
    def rejects_key(self) -> dg.AssetKey:
        return key_beside(self.verdicts_key, "rejects")

    @property
    def rows_key(self) -> dg.AssetKey:
        return upstream_key(self.rows)

    @property
    def columns(self) -> list[str]:
        """Columns of the rows that the prompt reads."""
        return sorted((self.prompt.columns() or frozenset()) - {*ANSWERS, self.join_key})

    def assets(
        self,
        model: str,
        response: Mapping[str, Any],
        figures: Figures,
        checks: Sequence[dg.AssetCheckSpec],
        *,
        group_name: str | None,
        owners: Sequence[str],
        tags: Mapping[str, str],
        llm_batch: Mapping[str, Any],
    ) -> list[dg.AssetsDefinition]:
        """All of them, in the order of the data."""
        tabling = self.tabling
        partitioned = tabling.partitions_def is not None
        common: dict[str, Any] = {"partitions_def": tabling.partitions_def, "group_name": group_name, "owners": owners}
        mine = {**common, "tags": {**tags, ROLE_TAG: "evaluation"}, "skippable": True}
        names = ", ".join(one.name for one in self.candidates)
        reads = list(dict.fromkeys([self.rows_key, *(one.key for one in self.candidates)]))
        from_outside = isinstance(self.rows, dg.AssetSpec) and self.rows.partitions_def is None
        cases = dg.AssetSpec(
            self.cases_key,
            description=f"What {model} is asked to judge: answers of {names}.",
            deps=reads,
            kinds={"table"},
            code_version=code_digest(
                self.join_key, self.targets, self.candidates, self.sample, self.seed, self.columns
            ),
            automation_condition=follow(
                reads, partitioned=partitioned, not_awaited=[self.rows_key] if from_outside else []
            ),
            **mine,
        )
        verdicts = llm_batch_assets(
            name=self.verdicts_key.path[-1],
            key_prefix=self.verdicts_key.path[:-1],
            rows=self._asked,
            deps=[self.cases_key],
            required_resource_keys={tabling.io_manager_key},
            key=CASE_ID,
            keep=[self.join_key, *self.keep],
            prompt=self.prompt,
            response=response,
            model=model,
            frame=tabling.frame,
            io_manager_key=tabling.io_manager_key,
            tags=tags,
            **common,
            **llm_batch,
        )
        said = [self.verdicts_key, self.rejects_key]
        table = dg.AssetSpec(
            self.key,
            description=f"{names} as judged by {model}.",
            deps=[self.cases_key, *said],
            kinds={"table", "report"},
            code_version=code_digest(response, self.candidates),
            automation_condition=follow(said, partitioned=partitioned),
            **mine,
        )
        return [
            tabling.asset(cases, self._compute_cases, backfill_policy=_BEFORE_ASKING),
            *verdicts,
            tabling.asset(
                table, lambda context, partition: figures(*self._judged(context, partition, response)), checks
            ),
        ]

    def _compute_cases(self, context: dg.AssetExecutionContext, partition: str | None) -> Computed:
        stored, key = StoredTables(context), self.join_key
        rows = self._read(stored, self.rows_key, partition, [key, *self.columns])
        answers = {one.name: self._read(stored, one.key, partition, [key, *self.targets]) for one in self.candidates}
        cases = self.cases(rows, answers, key=key, target=self.targets, sample=self.sample, seed=self.seed)
        asked = len(_to_ask(cases))
        shown = [dg.TableColumnDep(one.key, column) for one in self.candidates for column in self.targets]
        lineage = {
            **{name: [dg.TableColumnDep(self.rows_key, name)] for name in (key, *self.columns)},
            **{name: shown for name in self.own_columns if name in ANSWERS},
        }
        metadata = {
            "llm_batch/cases_to_ask": asked,
            "llm_batch/cases_identical": len(cases) - asked,
            "dagster/column_lineage": dg.TableColumnLineage(lineage),
        }
        return Computed(cases, metadata, CASE_DOCS)

    def _asked(self, context: RowsContext) -> pa.Table:
        """The rows of the labeled dataset."""
        return _to_ask(self._stored_cases(StoredTables(context.asset), context.partition_key))

    def _judged(
        self, context: dg.AssetExecutionContext, partition: str | None, response: Mapping[str, Any]
    ) -> tuple[pa.Table, pa.Table]:
        """The cases, and what was said of them: a reject is a row without a verdict."""
        stored = StoredTables(context)
        costs, said = ["llm_cost_usd"], [CASE_ID, *response["properties"]]
        verdicts = self._read(stored, self.verdicts_key, partition, said, also=costs)
        rejects = self._read(stored, self.rejects_key, partition, [CASE_ID], also=costs)
        return self._stored_cases(stored, partition), stacked([verdicts, rejects], self.verdicts_key)

    def _stored_cases(self, stored: StoredTables, partition: str | None) -> pa.Table:
        columns = [CASE_ID, self.join_key, *self.own_columns, *self.columns]
        return self._read(stored, self.cases_key, partition, columns)

    def _read(
        self,
        stored: StoredTables,
        key: dg.AssetKey,
        partition: str | None,
        columns: Sequence[str],
        also: Sequence[str] = (),
    ) -> pa.Table:
        hint = "Set key=, target= or the variables of the prompt to columns that are there."
        return stored.read(key, partition, self.tabling.partitions_def, columns, also=also, hint=hint)


def _to_ask(cases: pa.Table) -> pa.Table:
    return cases.filter(pc.invert(cases["identical"])) if "identical" in cases.column_names else cases
