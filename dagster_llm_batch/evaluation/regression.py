"""The version of its labels that somebody has accepted, candidate by candidate, to hold later versions against.

    labels, gold ─▶ <name> ─▶ <name>_accepted
                      ▲              ╎ what was accepted last
                      └╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘

Accepting is an explicit act, after the evaluation: materialize `<name>_accepted` with `candidates` in its run config.
Without, as in *Materialize all*, it is a green run that accepts nothing. What it stores is the labels of the gold rows,
since a candidate's own table is overwritten by its next version. That the next evaluation reads it is no dependency in
Dagster's graph, which has no circles; the evaluation's metadata link to the run that accepted.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from dagster_llm_batch._dagster_private import load_stored
from dagster_llm_batch.assets.partitions import each_partition
from dagster_llm_batch.assets.upstream import stack_tables
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.config import CheckedConfig
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder
from dagster_llm_batch.evaluation.gold_rows import Read, Upstreams
from dagster_llm_batch.evaluation.spec import EvaluationSpec
from dagster_llm_batch.evaluation.stored_tables import columns_of
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics import Evaluation, Regression, evaluate, join, regression_between, worse
from dagster_llm_batch.metrics.clusters import REQUEST
from dagster_llm_batch.metrics.pareto import bake_off_markdown
from dagster_llm_batch.metrics.regression import regressions_markdown
from dagster_llm_batch.text import plain_text

__all__ = ["CHECK", "Accept", "Accepted", "accepted_asset", "regression_verdict"]

CHECK = "regression"
"""Name of the asset check."""

_ANEW = "If its store, key or targets were others when it was accepted, accept a version anew."
_CANDIDATE = "candidate"
_KEPT = (REQUEST, "llm_outcome", "llm_model", "llm_prompt_version")
_DOCS = {
    _CANDIDATE: "whose labels were accepted",
    REQUEST: "digest of the request that was answered",
    "llm_outcome": "succeeded, or why there is no label",
    "llm_model": "the LLM that answered",
    "llm_prompt_version": "version of the prompt's wording",
}


class Accept(CheckedConfig):
    """Run config of `<name>_accepted`."""

    candidates: list[str] = Field(
        default=[],
        description="Candidates whose present labels are accepted from now on. Empty: nothing is accepted.",
    )


class Accepted:
    """What was accepted last, as one run reads it."""

    def __init__(self, context: dg.AssetExecutionContext, design: EvaluationSpec, spec: dg.AssetSpec) -> None:
        self._context = context
        self._design = design
        self._spec = spec
        self._event = context.instance.get_latest_materialization_event(spec.key)

    @property
    def metadata(self) -> dict[str, Any]:
        """When it was, and in which run."""
        if self._event is None:
            return {}
        return {
            "llm_batch/accepted_at": dg.MetadataValue.timestamp(self._event.timestamp),
            "llm_batch/accepted_by": dg.MetadataValue.dagster_run(self._event.run_id),
        }

    def table(self) -> pa.Table | None:
        """Return all that was accepted; None before anything was. Through the IO manager that stores it, as Dagster
        would: it is no upstream of a run, which could load those only.
        """
        if self._event is None:
            return None
        spec, design = self._spec, self._design
        shown_key, name = spec.key.to_user_string(), spec.key.to_python_identifier()
        try:
            stored = load_stored(self._context, spec, design.builder.io_manager_key, None, name=name)
            batches = list(record_batches(stored))
        except Exception as error:
            # An IO manager raises whatever its store raises.
            raise InputError(f"{shown_key} could not be read: {type(error).__name__}: {error}. {_ANEW}") from error
        columns = [_CANDIDATE, design.join_key, *(target.name for target in design.targets)]
        table = columns_of(batches, shown_key, columns, also=(*_KEPT, *design.clusters), hint=_ANEW)
        for name in design.clusters:
            # What was accepted before a cluster was named is paired by the present labels' clusters alone.
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), pa.large_string()))
        return table

    def of_others(self, candidates: Sequence[str]) -> list[pa.Table]:
        """Return what was accepted of all candidates but these."""
        table = self.table()
        return [] if table is None else [table.filter(pc.invert(pc.is_in(table[_CANDIDATE], pa.array(candidates))))]

    def regressions(self, read: Read) -> list[Regression]:
        """Return each accepted candidate and target, against what is there now."""
        accepted, design = self.table(), self._design
        regressions = []
        for candidate, now in read.candidates.items():
            then = None if accepted is None else accepted.filter(pc.equal(accepted[_CANDIDATE], candidate))
            if then is None or not len(then):
                continue
            for target in design.targets:
                before, after = (
                    join(
                        read.gold,
                        labels,
                        key=design.join_key,
                        target=target,
                        candidate_name=name,
                        cluster=design.cluster,
                    )
                    for name, labels in ((f"{candidate} (accepted)", then), (candidate, now))
                )
                regressions.append(regression_between(before, after))
        return regressions


def regression_verdict(
    regressions: Sequence[Regression], accepted: dg.AssetKey, severity: dg.AssetCheckSeverity
) -> CheckOutcome:
    """Return the verdict, which passes if no accepted candidate is surely worse than it was. Where nothing is accepted
    yet, or the rows are too few for a verdict, it does not fail either, and says so first.
    """
    bad = worse(regressions)
    if not regressions:
        description = (
            f"Nothing is accepted yet. Materialize {accepted.to_user_string()} with candidates= in its run config."
        )
    else:
        description = " ".join(map(_sentence, bad or sorted(regressions, key=_is_judged)))
        if not any(map(_is_judged, regressions)):
            description = f"Nothing was judged. {description}"
    metadata: dict[str, Any] = {
        figure_key("p_worse", regression.candidate, regression.target): regression.p_worse
        for regression in regressions
        if regression.p_worse is not None
    }
    metadata |= {
        figure_key("too_few_rows", regression.candidate, regression.target): _rows_short(regression)
        for regression in regressions
        if not _is_judged(regression)
    }
    return CheckOutcome(CHECK, passed=not bad, severity=severity, description=description, metadata=metadata)


def _sentence(regression: Regression) -> str:
    subject = f"{plain_text(regression.candidate)}, {plain_text(regression.target)}"
    if regression.accepted is None or regression.current is None:
        return f"{subject}: no gold row in common with the accepted version."
    form = ".3f" if regression.kind == "numeric" else ".1%"
    verdict = (
        f"p = {regression.p_worse:.2g}"
        if _is_judged(regression)
        else f"too few rows for a verdict: {_rows_short(regression)}"
    )
    return (
        f"{subject}: {regression.accepted:{form}} accepted, {regression.current:{form}} now, on "
        f"{regression.n_both:,} rows; {regression.n_fixed:,} fixed, {regression.n_broken:,} broken ({verdict})."
    )


def _is_judged(regression: Regression) -> bool:
    return regression.p_worse is not None


def _rows_short(regression: Regression) -> str:
    return f"{regression.n_both} of {regression.rows_wanted}"


def accepted_asset(design: EvaluationSpec, spec: dg.AssetSpec, builder: EvaluationBuilder) -> dg.AssetsDefinition:
    """Return `<name>_accepted`. Its `builder` has no partitions: one accepted version serves all of them."""

    @builder.multi_asset(spec)
    def accept(context: dg.AssetExecutionContext, config: Accept) -> Iterator[Any]:
        names = [candidate.name for candidate in design.candidates]
        if strangers := sorted(set(config.candidates) - set(names)):
            raise ConfigError(f"candidates={strangers} to accept are none of {', '.join(names)}.")
        if not config.candidates:
            context.log.warning(
                f"Nothing was accepted. To accept, materialize {spec.key.to_user_string()} with candidates= in its run "
                f"config, some of {', '.join(names)}."
            )
            return
        yield from each_partition(
            context, lambda _: builder.store(context, spec, None, _accept(context, design, spec, config.candidates))
        )

    return accept


def _accept(
    context: dg.AssetExecutionContext, design: EvaluationSpec, spec: dg.AssetSpec, candidates: Sequence[str]
) -> Computed:
    read = Upstreams(context, design).read(None)
    chosen = Read(read.gold, {name: read.candidates[name] for name in candidates})
    new = [_labels_of_gold(name, table, read.gold, design) for name, table in chosen.candidates.items()]
    try:
        accepted = Accepted(context, design, spec)
        table = stack_tables([*accepted.of_others(candidates), *new], spec.key)
        replaced = accepted.regressions(chosen)
    # What was accepted with another key or other targets cannot be held against the present labels.
    except (ConfigError, InputError) as error:
        context.log.warning(f"What was accepted before is dropped, for it cannot be compared any more: {error}")
        table, replaced = stack_tables(new, spec.key), []
    measured = [
        evaluate(join(read.gold, labels, key=design.join_key, target=target, candidate_name=name))
        for target in design.targets
        for name, labels in chosen.candidates.items()
    ]
    return Computed(table, _metadata(measured, replaced, candidates), _DOCS)


def _labels_of_gold(name: str, table: pa.Table, gold: pa.Table, design: EvaluationSpec) -> pa.Table:
    columns = [design.join_key, *(target.name for target in design.targets)]
    columns += [column for column in (*_KEPT, *design.clusters) if column in table.column_names]
    labels = table.filter(pc.is_in(table[design.join_key], gold[design.join_key].combine_chunks())).select(columns)
    return labels.add_column(0, _CANDIDATE, pa.repeat(name, len(labels)).cast(pa.large_string()))


def _metadata(
    measured: Sequence[Evaluation], replaced: Sequence[Regression], candidates: Sequence[str]
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "llm_batch/accepted_now": ", ".join(candidates),
        "llm_batch/accepted": dg.MetadataValue.md(bake_off_markdown(measured)),
    }
    if replaced:
        shown["llm_batch/replaced"] = dg.MetadataValue.md(regressions_markdown(replaced))
    return shown
