"""The version of its labels that somebody has accepted, candidate by candidate, to hold later versions against.

    labels, gold ─▶ <name> ─▶ <name>_accepted
                      ▲              ╎ labels accepted last
                      └╌╌╌╌╌╌╌╌╌╌╌╌╌╌┘

Accepting is an explicit act, after the evaluation: materialize `<name>_accepted` with `candidates` in its run config.
A run without candidates, such as *Materialize all*, succeeds and accepts nothing. The asset stores the labels of the
gold rows, since the next version overwrites a candidate's own table. The next evaluation reads them; Dagster's graph
does not show this dependency, since it allows no cycles. The evaluation's metadata link to the run that accepted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, code_digest
from dagster_llm_batch.evaluation.gold_rows import Read, Upstreams
from dagster_llm_batch.evaluation.sequential_tests import InterimLook, SequentialTest
from dagster_llm_batch.evaluation.spec import EvaluationSpec
from dagster_llm_batch.evaluation.stored_tables import columns_of
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics import Evaluation, Regression, evaluate, join, regression_between
from dagster_llm_batch.metrics.clusters import REQUEST
from dagster_llm_batch.metrics.pareto import bake_off_markdown
from dagster_llm_batch.metrics.regression import regressions_markdown
from dagster_llm_batch.metrics.sequential_tests import ALPHA
from dagster_llm_batch.text import plain_text

__all__ = ["CHECK", "Accept", "Accepted", "accepted_asset", "judge_regression"]

CHECK = "regression"
"""Name of the asset check."""

_ANEW = "If its store, key or targets were others when it was accepted, accept a version again."
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
    """The labels accepted last, read once per run."""

    def __init__(self, context: dg.AssetExecutionContext, design: EvaluationSpec, spec: dg.AssetSpec) -> None:
        self._context = context
        self._design = design
        self._spec = spec
        self._event = context.instance.get_latest_materialization_event(spec.key)

    @property
    def shown_key(self) -> str:
        return self._spec.key.to_user_string()

    @property
    def run_id(self) -> str | None:
        """The run that accepted."""
        return None if self._event is None else self._event.run_id

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
            # If a version was accepted before the cluster was named, pair it by the present labels' clusters only.
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), pa.large_string()))
        return table

    def of_others(self, candidates: Sequence[str]) -> list[pa.Table]:
        """Return the accepted labels of all candidates except these."""
        table = self.table()
        return [] if table is None else [table.filter(pc.invert(pc.is_in(table[_CANDIDATE], pa.array(candidates))))]

    def regressions(self, read: Read) -> list[Regression]:
        """Compare each accepted candidate and target with its present labels."""
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


def judge_regression(
    regressions: Sequence[Regression],
    test: SequentialTest,
    partition: str | None,
    accepted: Accepted,
    severity: dg.AssetCheckSeverity,
) -> CheckOutcome:
    """Return the check result: passed if no accepted candidate is surely worse than before.

    It also passes, and first gives the reason, before the first accepted version, or if the rows are too few to decide.
    """
    if not regressions:
        hint = f"Materialize {accepted.shown_key} with candidates= in its run config."
        return CheckOutcome(CHECK, True, severity, f"Nothing is accepted yet. {hint}", {})  # noqa: FBT003  # a field
    compared = [regression for regression in regressions if regression.n_both]
    look = InterimLook(
        partition,
        # Versions with equal labels on all rows cannot fail: do not count that as a look.
        state=code_digest(compared) if any(one.n_fixed or one.n_broken for one in compared) else "",
        question=accepted.run_id or "",
        payoffs={_name(one): one.log_payoffs for one in compared},
    )
    judged = [_Judged.of(one, look, test, len(compared)) for one in regressions]
    bad = [one for one in judged if one.is_worse]
    description = " ".join(one.sentence for one in bad or sorted(judged, key=lambda one: one.is_decided))
    if not any(one.is_decided for one in judged):
        description = f"Not decided: too few rows. {description}"
    figures: dict[str, Any] = {}
    for one in judged:
        names = (one.regression.candidate, one.regression.target)
        if one.regression.p_worse is not None:
            figures[figure_key("p_worse", *names)] = one.regression.p_worse
        if not one.is_decided:
            figures[figure_key("too_few_rows", *names)] = one.rows_short
        if one.p_life is not None:
            figures[figure_key("p_worse_over_looks", *names)] = one.p_life
    return CheckOutcome(
        CHECK, passed=not bad, severity=severity, description=description, metadata={**figures, **test.keep(look)}
    )


def _name(regression: Regression) -> str:
    """Return the question whose evidence is pooled: another prompt's labels are another question."""
    return ", ".join([regression.candidate, regression.target, *regression.current_versions])


@dataclass(frozen=True)
class _Judged:
    """A regression with its evidence.

    - `p_life`: how often a life of looks at equal versions would show as much; None if this look is the only one to
      show anything, and its units are too few.
    - `units_wanted`: units that could show something if all of them got worse.
    """

    regression: Regression
    p_life: float | None
    units_wanted: int

    @classmethod
    def of(cls, regression: Regression, look: InterimLook, test: SequentialTest, n_compared: int) -> "_Judged":
        n_units = regression.n_units
        if look.partition is not None and n_units:
            name = _name(regression)
            p_life = min(1.0, n_compared / test.evidence(look, name))
            return cls(regression, p_life, test.units_wanted(look, name, n_units, n_compared))
        level = test.level(look, n_compared)
        # If all units got worse, the chance of that is one in 2 ** units looks.
        wanted = math.ceil(-math.log2(level))
        if regression.p_worse is None or n_units < wanted:
            return cls(regression, None, wanted)
        return cls(regression, min(1.0, regression.p_worse * ALPHA / level), wanted)

    @property
    def is_decided(self) -> bool:
        """Whether these rows could have failed the check in the worst case."""
        return self.p_life is not None and self.regression.n_units >= self.units_wanted

    @property
    def is_worse(self) -> bool:
        return self.p_life is not None and self.p_life < ALPHA

    @property
    def rows_short(self) -> str:
        return f"{self.regression.n_units} of {self.units_wanted}"

    @property
    def sentence(self) -> str:
        regression = self.regression
        subject = f"{plain_text(regression.candidate)}, {plain_text(regression.target)}"
        if regression.accepted is None or regression.current is None:
            return f"{subject}: no gold row in common with the accepted version."
        form = ".3f" if regression.kind == "numeric" else ".1%"
        chance = f"p = {regression.p_worse:.2g} in this look"
        if self.p_life is not None:
            chance += f", {self.p_life:.2g} over all looks"
        if not self.is_decided:
            chance += f"; not decided: too few rows, {self.rows_short}"
        return (
            f"{subject}: {regression.accepted:{form}} accepted, {regression.current:{form}} now, on "
            f"{regression.n_both:,} rows; {regression.n_fixed:,} fixed, {regression.n_broken:,} broken ({chance})."
        )


def accepted_asset(design: EvaluationSpec, spec: dg.AssetSpec, builder: EvaluationBuilder) -> dg.AssetsDefinition:
    """Return `<name>_accepted`. Its `builder` has no partitions: one accepted version serves all of them."""

    @builder.multi_asset(spec)
    def accept(context: dg.AssetExecutionContext, config: Accept) -> Iterator[Any]:
        names = [candidate.name for candidate in design.candidates]
        if strangers := sorted(set(config.candidates) - set(names)):
            raise ConfigError(
                f"candidates={', '.join(strangers)} to accept are unknown. The candidates are {', '.join(names)}."
            )
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
    # A version accepted with another key or other targets cannot be compared with the present labels.
    except (ConfigError, InputError) as error:
        context.log.warning(f"The version accepted before is dropped, since it cannot be compared any more: {error}")
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
