"""The facts for a choice of a model: a dataset, datasets beside it, their ledger records, and gold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

import click
import dagster as dg

from dagster_llm_batch.advice.choice import BatchEnds, Chooser
from dagster_llm_batch.advice.labeling_plan import GOLD, Wanted
from dagster_llm_batch.advice.model_history import ModelHistory, labeling_in_ledger, read_model_histories
from dagster_llm_batch.arguments import nearest_name
from dagster_llm_batch.cli.deployment import DeploymentAccess
from dagster_llm_batch.core.logprobs import LOGPROB
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import LLMBatchError

if TYPE_CHECKING:
    import pyarrow as pa

    from dagster_llm_batch.evaluation.spec import EvaluationSpec

__all__ = ["Case"]

# Number of runs that the next run's rows are estimated from.
_REMEMBERED = 5
# Least number of judged rows that count as gold; an interval of fewer is useless.
_FEWEST_JUDGED = 20
_NAMES_SHOWN = 10


@dataclass(frozen=True)
class Case:
    """A dataset, the datasets beside it, its records, and its gold."""

    deployment: DeploymentAccess
    name: str
    beside: Sequence[str]
    given_target: str | None
    given_score: str | None
    given_against: str | None
    given_evaluation: str | None

    @cached_property
    def labeling(self) -> Labeling:
        return self._labeling(self.name)

    def _labeling(self, name: str) -> Labeling:
        """Return the definition of a dataset from the code, else the newest one in the ledger."""
        datasets = self.deployment.code.datasets
        by_key = {dataset.key.to_user_string(): dataset for dataset in datasets.values()}
        if (found := datasets.get(name) or by_key.get(name)) is not None:
            return found.labeling
        deployment = self.deployment.dry_engine.deployment
        if (stored := labeling_in_ledger(deployment, name)) is not None:
            return stored
        known = {*datasets, *(each.asset for each in deployment.ledger.submissions.list_all(deployment.namespace))}
        near = nearest_name(name, known)
        meant = "" if near is None else f" Did you mean '{near}'?"
        names = ", ".join(sorted(known)[:_NAMES_SHOWN]) or "none"
        raise click.UsageError(
            f"'{name}' is no labeled dataset of {self.deployment.code.pointer}, nor of its ledger.{meant} There are: "
            f"{names}."
        )

    @cached_property
    def evaluations(self) -> list[EvaluationSpec]:
        """The evaluations that have this dataset as a candidate, and the target among their own."""
        code, own = self.deployment.code, self.labeling
        dataset = code.datasets.get(own.asset)
        wanted = self.given_target or (own.cascade and own.cascade.target)
        found = []
        for spec in code.evaluations if dataset is not None else ():
            is_candidate = dataset is not None and dataset.key in [candidate.key for candidate in spec.candidates]
            targets = [target.name for target in spec.targets if target.kind == "categorical"]
            if is_candidate and spec.join_key == own.key and (wanted in targets or (not wanted and targets)):
                found.append(spec)
        return found

    @cached_property
    def evaluation(self) -> EvaluationSpec | None:
        """The evaluation that provides gold: the named one, else the first with stored gold."""
        names = {spec.builder.key.to_user_string(): spec for spec in self.evaluations}
        if self.given_evaluation is not None:
            if self.given_evaluation not in names:
                raise click.UsageError(
                    f"--evaluation {self.given_evaluation!r} is no evaluation of '{self.name}' with a categorical "
                    f"target; those that are: {', '.join(names) or 'none'}."
                )
            return names[self.given_evaluation]
        is_there = (spec for spec in self.evaluations if self.deployment.code.stored_places(spec.gold))
        return next(is_there, self.evaluations[0] if self.evaluations else None)

    @cached_property
    def target(self) -> str:
        schema, cascade = self.labeling.reader.schema, self.labeling.cascade
        if self.given_target is not None:
            if self.given_target not in schema.names:
                raise click.UsageError(
                    f"--target {self.given_target!r} is no column of the response; its columns: "
                    f"{', '.join(schema.names)}."
                )
            return self.given_target
        if cascade is not None:
            return cascade.target
        if self.evaluation is not None:
            return next(target.name for target in self.evaluation.targets if target.kind == "categorical")
        if len(schema.names) == 1:
            return str(schema.names[0])
        raise click.UsageError(
            f"Which column of '{self.name}' has to be right? Name it with --target: {', '.join(schema.names)}."
        )

    @cached_property
    def score(self) -> str | None:
        names, cascade = self.labeling.result_schema.names, self.labeling.cascade
        if self.given_score is not None and self.given_score not in names:
            raise click.UsageError(
                f"--score {self.given_score!r} is no column of the response; its columns: {', '.join(names)}."
            )
        declared = [target.confidence_column for target in self.evaluation.targets] if self.evaluation else []
        wanted = [self.given_score, cascade and cascade.score, *declared, "confidence", LOGPROB.name]
        return next((name for name in wanted if name and name in names), None)

    @cached_property
    def against(self) -> str:
        if self.given_against is not None:
            if self.given_against == GOLD and self.evaluation is None and not self.gold_is_judged:
                raise click.UsageError(self._no_evaluation())
            models = [record.model for record in self.records]
            if self.given_against not in (GOLD, *models):
                raise click.UsageError(
                    f"--against {self.given_against!r} is neither '{GOLD}' nor a model of '{self.name}' or of what is "
                    f"beside it; these are {', '.join(dict.fromkeys(models))}."
                )
            return self.given_against
        if self.evaluation is not None or self.gold_is_judged:
            return GOLD
        if self.labeling.cascade is not None:
            return self.labeling.cascade.oracle
        raise click.UsageError(self._no_evaluation())

    def _no_evaluation(self) -> str:
        return (
            f"There is no gold for '{self.name}': it is not a candidate of an evaluation with a categorical target, so "
            "the quality of plans is unknown. Declare an evaluation with gold for some rows, or compare with a model's "
            "labels: --against provider/model."
        )

    @cached_property
    def names_beside(self) -> list[str]:
        """The datasets whose models come into question: named, measured with it, or of the same rows."""
        datasets, own = self.deployment.code.datasets, self.labeling
        dataset = datasets.get(own.asset)
        keys = [candidate.key for spec in self.evaluations for candidate in spec.candidates]
        found = [
            name
            for name, other in datasets.items()
            if other.key in keys
            or (dataset is not None and dataset.rows_key is not None and other.rows_key == dataset.rows_key)
        ]
        return [name for name in dict.fromkeys([*self.beside, *found]) if name != own.asset]

    @cached_property
    def records(self) -> list[ModelHistory]:
        deployment = self.deployment.dry_engine.deployment
        labelings = [self.labeling, *map(self._labeling, self.names_beside)]
        fitting = [each for each in labelings if each.key == self.labeling.key]
        return [
            record
            for labeling in fitting
            if self.target in labeling.reader.schema.names
            for record in read_model_histories(deployment, labeling, self.target, self.score)
        ]

    @property
    def rolls(self) -> bool:
        """True if the dataset's partitions are windows of time."""
        dataset = self.deployment.code.datasets.get(self.labeling.asset)
        return dataset is not None and isinstance(dataset.partitions_def, dg.TimeWindowPartitionsDefinition)

    @property
    def usual_rows(self) -> int:
        """Number of rows of the dataset's last runs."""
        runs = {(run.partition, run.at): run.rows for record in self._own for run in record.runs}
        if not runs:
            raise click.UsageError(
                f"'{self.name}' has no complete run in this ledger, so the next row count is unknown. Give "
                "it with --rows."
            )
        newest = sorted(runs, key=lambda run: run[1])[-_REMEMBERED:]
        return max(1, round(fmean(runs[run] for run in newest)))

    @property
    def _own(self) -> list[ModelHistory]:
        return [record for record in self.records if record.labeling.asset == self.labeling.asset]

    @cached_property
    def gold(self) -> tuple[pa.Table | None, str | None]:
        """The gold of the answered rows, or the reason why it is missing."""
        if self.against != GOLD:
            return None, None
        if self.gold_is_judged:
            return self.judged, None
        if self.evaluation is None:
            return None, None
        try:
            return self._read_gold(self.evaluation), None
        except LLMBatchError as error:
            return None, str(error)

    def _read_gold(self, evaluation: EvaluationSpec) -> pa.Table:
        import pyarrow as pa  # noqa: PLC0415 - `--help` needs none

        from dagster_llm_batch.core.rows import record_batches  # noqa: PLC0415
        from dagster_llm_batch.evaluation.stored_tables import columns_of  # noqa: PLC0415
        from dagster_llm_batch.metrics.gold_weights import SAMPLE_COLUMNS  # noqa: PLC0415

        code, key = self.deployment.code, evaluation.gold
        columns = list(dict.fromkeys([evaluation.join_key, self.gold_column]))
        also = (*SAMPLE_COLUMNS, *evaluation.clusters)
        answered = {partition for record in self.records for partition in record.partitions}
        stored = list(code.stored_places(key))
        wanted = [partition for partition in stored if partition in answered] or stored or [""]
        tables = []
        for partition in wanted:
            value = code.load_asset(key, partition or None)
            batches = list(record_batches(value, {*columns, *also}))
            read = columns_of(batches, key.to_user_string(), columns, also=also, hint="Change the evaluation's key=.")
            read = read.append_column("row", read[evaluation.join_key].cast(pa.string()))
            if partition:
                read = read.append_column("partition", pa.repeat(pa.scalar(partition), len(read)))
            tables.append(read)
        return pa.concat_tables(tables, promote_options="default").combine_chunks()

    @cached_property
    def gold_is_judged(self) -> bool:
        """True if gold comes from judgments in the ledger, because no evaluation has stored gold."""
        if self.given_evaluation is not None:
            return False
        if self.evaluation is not None and self.deployment.code.stored_places(self.evaluation.gold):
            return False
        return len(self.judged) >= _FEWEST_JUDGED

    @cached_property
    def judged(self) -> pa.Table:
        """Labels that people agree on, from their judgments in the ledger."""
        from dagster_llm_batch.evaluation.annotation import gold_of_judgments  # noqa: PLC0415 - `--help` needs none

        deployment = self.deployment.dry_engine.deployment
        judgments = deployment.ledger.judgments.read(deployment.namespace, self.labeling.asset)
        return gold_of_judgments(judgments, self.labeling, self.target)

    @property
    def gold_is_drawn(self) -> bool:
        """True if the gold rows were drawn at random, as far as the judgments show."""
        from dagster_llm_batch.metrics.gold_weights import WEIGHT  # noqa: PLC0415 - as above

        return WEIGHT in self.judged.column_names

    @property
    def gold_asset(self) -> str | None:
        """The asset that a cascade may take as its gold: one whose target has the name that the response has."""
        if self.gold_is_judged or self.evaluation is None or self.gold_column != self.target:
            return None
        return self.evaluation.gold.to_user_string()

    @property
    def gold_column(self) -> str:
        targets = self.evaluation.targets if self.evaluation and not self.gold_is_judged else ()
        return next((each.gold_column or each.name for each in targets if each.name == self.target), self.target)

    @property
    def reference(self) -> str:
        """The source of right labels, in words."""
        if self.against == GOLD and self.gold_is_judged:
            return f"the human labels of {len(self.judged):,} rows"
        if self.against != GOLD or self.evaluation is None:
            return f"the labels of {self.against}"
        return f"the gold of {self.evaluation.gold.to_user_string()}"

    def chooser(self, wanted: Wanted) -> Chooser:
        gold, _ = self.gold
        cluster = self.evaluation.cluster if self.evaluation and not self.gold_is_judged else None
        deployment = self.deployment.dry_engine.deployment
        ends, of_gold = BatchEnds(deployment, wanted.now), (gold, self.gold_column, cluster, self.gold_asset)
        return Chooser(deployment, self.records, wanted, ends, *of_gold)

    def definition_of(self, record: ModelHistory) -> str | None:
        """Return the dataset whose prompt and parameters a model was asked by; None where it is the dataset's own."""
        own, other = self.labeling, record.labeling
        apart = {"model": None, "cascade": None}
        if any(known.definition["asked"] | apart == other.definition["asked"] | apart for known in own.models):
            return None
        return other.asset if other.asset != own.asset else f"an earlier definition of {own.asset}"
