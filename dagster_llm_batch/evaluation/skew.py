"""Compare labels from batches with answers of the same LLM in real time.

    labels ─sample by key─▶ the same requests ─real-time lane─▶ <name>_sample ─▶ <name>

A real-time service may be trained, prompted or judged with labels that came in batches. Its error then includes the
difference of the two (training-serving skew). Requests use the labeled dataset's own prompt, response and provider.
They pass ledger and budgets as a separate submission: asked and paid for once.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.dataset import Dataset, dataset_of
from dagster_llm_batch.assets.options import AssetOptions
from dagster_llm_batch.checks import CheckOutcome, fail_with
from dagster_llm_batch.core.levels import SAMPLED
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.core.shares import REUSE
from dagster_llm_batch.engine import Labeling, Realtime, Status
from dagster_llm_batch.engine.realtime_sample import answer_now, in_real_time, marked
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, Tables, code_digest
from dagster_llm_batch.evaluation.candidates import check_targets
from dagster_llm_batch.evaluation.sequential_tests import InterimLook, SequentialTest
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.evaluation.thresholds import AtLeast
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics import Target, plain_text
from dagster_llm_batch.metrics.key_hash import draw_keys
from dagster_llm_batch.metrics.limits import share_lower_bound, share_p_below
from dagster_llm_batch.metrics.sequential_tests import ALPHA
from dagster_llm_batch.metrics.skew import Skew, side_by_side, skew_between, skew_markdown, skew_to_arrow
from dagster_llm_batch.text import cell_text
from dagster_llm_batch.types import Lane

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["skew_assets"]

_AGREEMENT = "agreement"
_HINT = "Set target= to columns of the labels."
_ASKED = ("llm_request_id", "llm_model", "llm_lane", "llm_provider")

_DOCS = {
    "target": "column that was compared",
    "kind": "categorical or numeric",
    "n_sampled": "labeled rows that were drawn",
    "n_changed": "rows that are gone, or make another request now; left out",
    "n_unanswered": "rows without a good reply in real time; left out",
    "n_compared": "rows with both",
    "n_same": "compared rows with the same value",
    "agreement": "n_same / n_compared",
    "n_requests": "different requests among the compared rows",
    "n_requests_same": "those with the same value",
    "agreement_low": "95 % interval, by requests",
    "agreement_high": "95 % interval, by requests",
    "kappa": "Cohen's kappa of both",
    "mean_difference": "real time less batch",
    "mean_absolute_difference": "distance of both",
    "batch_models": "LLMs that answered in batches",
    "realtime_models": "LLMs that answered in real time",
}
_SAMPLE_DOCS = {
    "llm_same": "all targets are the same; null where there is nothing to compare",
    "llm_changed": "the row is gone, or makes another request now",
    "llm_outcome": "of the reply in real time",
    "llm_reason": "rejection reason",
    "llm_model": "the LLM that answered in real time",
    "llm_cost_usd": "of the reply in real time",
}


@checked_options(AssetOptions, EvaluationBuilder)
def skew_assets(
    *,
    name: str,
    candidates: Sequence[dg.AssetsDefinition],
    target: str | Target | Sequence[str | Target],
    sample_size: int | None = 100,
    seed: int = 0,
    max_cost_usd: Decimal | float | str | None = None,
    min_agreement: float | AtLeast | None = None,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    realtime: Realtime | None = None,
    backfill_policy: dg.BackfillPolicy | None = None,
    **options: Unpack[AssetOptions],
) -> list[dg.AssetsDefinition]:
    """Declare a sample of labels, asked again in real time and compared: `<name>`, and `<name>_sample` with both side
    by side.

    Replies also differ by chance, unless the temperature is 0. For a cascade the oracle is asked again, about rows of
    its sample: its agreement with itself is the upper limit of any model's agreement with it. The labels' partitions
    are sampled one by one. Materializing again sends and costs nothing, unless rows, prompt or parameters have changed.
    Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset with the figures.
        candidates: The one labeled dataset, as `llm_batch_assets` returned it. Rows, prompt, response, model, IO
            manager and partitions are its.
        target: Column, or columns, of the labels to compare; a `Target` of the kind "numeric" for a measurement.
        sample_size: Number of labels to ask again, drawn by their keys and `seed`, for each partition if there are any.
            None (in YAML null): all of them. Only labels that came in batches of the labels' own model are drawn.
        seed: Seed of the drawing; another one draws other rows.
        max_cost_usd: Ask nothing if the estimate for one sample, in real time, exceeds this many US dollars.
        min_agreement: Least share of equal values, of every target, as a check. It fails if the sample has less and
            chance does not explain this (exact test; the looks at all partitions share 5 %).
            `AtLeast(0.9, confidence=0.95)` fails unless the lower bound of the sample's share reaches 0.9. Either
            counts requests.
        check_severity: Severity of the check when it fails.
        blocking: Whether the failed check holds back downstream assets.
        realtime: Number of parallel calls, and how long they wait. All rows of the sample are asked at once, so it has
            no deadline and no urgent column. Default: the setting of the labels.
        backfill_policy: Number of runs of a backfill. Default: the policy of the labels.
        options: Dagster's own, as for `evaluation_assets`. By default only a person starts it;
            `automation_condition=on_labels_ready()` asks whenever labels are new.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    dataset = dataset_of(candidates)
    given = [target] if isinstance(target, str | Target) else list(target)
    targets = tuple(Target(column) if isinstance(column, str) else column for column in given)
    # A kept column comes from the row, so it is the same in both.
    check_targets([compared.name for compared in targets], dataset.labeling.reader.schema.names, dataset.key)
    if restored := [compared.name for compared in targets if compared.name in dataset.restored]:
        raise ConfigError(
            f"target names {', '.join(restored)}, in which Mask.restore puts values. Answers in real time have "
            "placeholders there, so that all would differ. Name other columns."
        )
    if not targets or (sample_size is not None and sample_size < 1):
        raise ConfigError(f"target={given}, sample_size={sample_size!r}: give at least one of each.")
    least = None if min_agreement is None else AtLeast.of_labels("min_agreement", min_agreement)
    if least is not None and not 0 <= least.least <= 1:
        raise ConfigError(f"min_agreement={least.least!r}: a share is between 0 and 1.")
    for field in ("deadline", "urgent"):
        if realtime is not None and (value := getattr(realtime, field)) is not None:
            raise ConfigError(
                f"realtime.{field}={value!r} is not allowed: all rows of the sample are asked at once. Leave it out."
            )
    builder = EvaluationBuilder(
        name=name,
        partitions_def=dataset.partitions_def,
        frame=dataset.frame,
        io_manager_key=dataset.io_manager_key,
        backfill_policy=backfill_policy or dataset.backfill_policy,
        **options,
    )
    skew = _Skew(
        dataset=dataset,
        labeling=in_real_time(
            _asked_again(dataset.labeling), builder.key.to_user_string(), realtime, max_cost_usd=max_cost_usd
        ),
        targets=targets,
        sample_size=sample_size,
        seed=seed,
        min_agreement=least,
        severity=check_severity,
    )
    shared: dict[str, Any] = {
        "deps": [dataset.key, *dataset.upstreams],
        "code_version": code_digest(dataset.labeling.code_version, targets, sample_size, seed),
    }
    of = dataset.key.to_user_string()
    specs = {
        "": builder.spec(f"Labels of {of} in batches, compared with labels in real time.", **shared),
        "sample": builder.spec(f"Rows of {of}, sent again in real time.", suffix="sample", kinds={"table"}, **shared),
    }
    checks = []
    if least is not None:
        meaning = f"The share of labels that are the same in real time is at least {least}."
        checks.append(builder.check(_AGREEMENT, meaning, blocking=blocking))
    resource_keys = {dataset.resource_key, *dataset.rows_resource_keys}
    return [builder.asset(specs, partial(_prepare, skew, specs[""].key), checks, resource_keys)]


def _asked_again(labeling: Labeling) -> Labeling:
    """Return the labeling by the model that is asked again: of a cascade, by its oracle."""
    return labeling if labeling.cascade is None else labeling.models[1]


def _prepare(skew: "_Skew", main: dg.AssetKey, context: dg.AssetExecutionContext) -> Callable[[str | None], Tables]:
    engine = skew.dataset.engine(context)
    # before any row is read
    engine.check(skew.labeling)
    test = SequentialTest(context, dg.AssetCheckKey(main, _AGREEMENT), skew.dataset.partitions_def)

    def compute(partition: str | None) -> Tables:
        sample, figures = skew.compute(context, engine, partition, test)
        return {"sample": lambda: sample, "": lambda: figures}

    return compute


@dataclass(frozen=True)
class _Skew:
    """One skew check. `labeling` is the dataset's, for the asset of the figures, all of it in real time."""

    dataset: Dataset
    labeling: Labeling
    targets: tuple[Target, ...]
    sample_size: int | None
    seed: int
    min_agreement: AtLeast | None
    severity: dg.AssetCheckSeverity

    def compute(
        self, context: dg.AssetExecutionContext, engine: "Engine", partition: str | None, test: SequentialTest
    ) -> tuple[Computed, Computed]:
        """Return the sample side by side, and the figures."""
        batch = self._drawn(context, engine, partition)
        realtime, status = self._asked(context, engine, partition, batch)
        key, names = self.labeling.key, [target.name for target in self.targets]
        skews = [skew_between(batch, realtime, key=key, target=target) for target in self.targets]
        cost = status.submission.cost_usd
        metadata = {
            "llm_batch/skew": dg.MetadataValue.md(skew_markdown(skews)),
            **{figure_key("agreement", skew.target): skew.agreement for skew in skews if skew.agreement is not None},
            **({} if cost is None else {"llm_batch/cost_usd": float(cost)}),
            "llm_batch/submission_id": status.submission.submission_id,
        }
        check_results = (
            [] if self.min_agreement is None else [self._check_result(skews, self.min_agreement, partition, test)]
        )
        if (given_up := engine.unsent(status.submission.submission_id).over_budget) is not None:
            metadata["llm_batch/over_budget"] = cell_text(given_up, limit=1_000)
            context.log.warning(f"{partition or 'skew'}: given up for money: {given_up}")
            check_results = [fail_with(one, f"Abandoned for money: {given_up}") for one in check_results]
        sample = side_by_side(batch, realtime, key=key, targets=names)
        differ = int(pc.sum(pc.equal(sample["llm_same"], pa.scalar(value=False))).as_py() or 0)
        return (
            Computed(sample, {"llm_batch/rows_that_differ": differ}, _SAMPLE_DOCS),
            Computed(skew_to_arrow(skews), metadata, _DOCS, check_results),
        )

    def _drawn(self, context: dg.AssetExecutionContext, engine: "Engine", partition: str | None) -> pa.Table:
        """Return the labels of the sample. Raises ConfigError if they were made in another way than the present
        one.
        """
        dataset, key = self.dataset, self.labeling.key
        labeling = dataset.labeling
        targets = (target.name for target in self.targets)
        levels = () if labeling.cascade is None else ("llm_why",)
        columns = list(dict.fromkeys([key, *targets, *_ASKED, *levels]))
        labels = StoredTables(context).read(dataset.key, partition, columns, also=(REUSE.name,), hint=_HINT)
        submissions = engine.ledger.submissions.of_partition(engine.namespace, labeling.asset, partition or "")
        # Labels of another definition would be compared with answers to the present one.
        made = next((submission.config_fingerprint for submission in submissions if submission.is_settled), None)
        if made != engine.deployment.configuration(labeling):
            raise ConfigError(
                f"The labels of {dataset.key.to_user_string()} were made with another model, parameters, response "
                "schema or account than are declared now: they would be compared with something else. Materialize "
                f"{dataset.batch_key.to_user_string()} and the labels again, or restore the earlier definition."
            )
        own = pc.and_(
            pc.equal(labels["llm_lane"], Lane.BATCH.value), pc.equal(labels["llm_provider"], self.labeling.provider)
        )
        if labeling.cascade is not None:
            # Escalated rows are the harder ones, and not a sample of all.
            own = pc.and_(own, pc.equal(labels["llm_why"], SAMPLED))
        if REUSE.name in labels.column_names:
            # Other rows would be asked their own requests, which did not make their labels.
            own = pc.and_(own, pc.is_null(labels[REUSE.name]))
        labels = labels.filter(own)
        if self.sample_size is None:
            return labels
        drawn = draw_keys(labels[key].to_pylist(), self.sample_size, self.seed)
        return labels.filter(pa.array([value in drawn for value in labels[key].to_pylist()], pa.bool_()))

    def _asked(
        self, context: dg.AssetExecutionContext, engine: "Engine", partition: str | None, batch: pa.Table
    ) -> tuple[pa.Table, Status]:
        """Return the labels that rows of `batch` get in real time; rejects are rows without a label."""
        key, upstream = self.labeling.key, self.dataset.upstream(context, partition)
        with replace(self.dataset, when=None).read_rows(context, upstream) as all_rows:
            rows = _with_keys(all_rows, key, batch[key], self.labeling.columns_read)
            planned = engine.plan(self.labeling, rows, partition=partition or "", run_id=context.run.run_id)
        # If all sampled labels come from other requests than the rows make now, the comparison would be of different
        # questions: do not pay for it.
        if len(batch) and not planned.is_settled:
            self._refuse_other_requests(engine, planned.submission_id, planned.manifest, batch)
        status = answer_now(engine, self.labeling, planned.submission_id)
        labeled = engine.labels(self.labeling, planned.submission_id, run_id=context.run.run_id)
        engine.ledger.submissions.mark_delivered(planned.submission_id)
        return pa.concat_tables([labeled.labels, labeled.rejects], promote_options="default"), status

    def _refuse_other_requests(self, engine: "Engine", submission_id: str, manifest: str, batch: pa.Table) -> None:
        """Before anything is paid for."""
        requests = engine.payloads.read_table(manifest, ["llm_request_id"])["llm_request_id"]
        if pc.any(pc.is_in(batch["llm_request_id"].cast(pa.string()), value_set=requests.cast(pa.string()))).as_py():
            return
        engine.cancel(submission_id)
        raise InputError(
            f"None of the {len(batch)} sampled labels was made from the request that its row makes now: rows or prompt "
            "have changed since, or the prompt shows the whole row. Nothing was asked. Materialize "
            f"{self.dataset.batch_key.to_user_string()} and the labels again, or name the prompt's columns."
        )

    def _check_result(
        self, skews: Sequence[Skew], wanted: AtLeast, partition: str | None, test: SequentialTest
    ) -> CheckOutcome:
        """Return the check result.

        A target fails if its wanted share would too seldom show so few equal values. With a confidence, it fails if the
        lower bound is below the share.
        """
        judged = [(skew, share) for skew in skews if (share := skew.agreement) is not None]
        if wanted.confidence is not None:
            return self._bounded(judged, wanted, wanted.confidence)
        least = wanted.least
        p_values = [share_p_below(skew.n_requests_same, skew.n_requests, least) for skew, _ in judged]
        # A sample that reaches the share cannot fail: do not count it as a look.
        below = any(share < least for _, share in judged)
        look = InterimLook(
            partition, state=code_digest(*((skew.n_same, skew.n_compared) for skew, _ in judged)) if below else ""
        )
        level = test.level(look, len(judged))
        lines = [
            f"{plain_text(skew.target)}: {share:.1%} of {skew.n_compared} are the same; required: at least {least:.1%}"
            + (_chance(p, level, skew.n_requests, least) if share < least else "")
            for (skew, share), p in zip(judged, p_values, strict=True)
        ]
        return CheckOutcome(
            _AGREEMENT,
            passed=all(p >= level for p in p_values),
            severity=self.severity,
            description=". ".join(lines) + "." if lines else "Nothing to compare.",
            metadata=test.keep(look),
        )

    def _bounded(self, judged: Sequence[tuple[Skew, float]], wanted: AtLeast, confidence: float) -> CheckOutcome:
        bounds = [share_lower_bound(skew.n_requests_same, skew.n_requests, confidence) for skew, _ in judged]
        lines = [
            f"{plain_text(skew.target)}: {share:.3f} of {skew.n_compared} are the same{wanted.shown_bound(bound)}; "
            f"required: at least {wanted}"
            for (skew, share), bound in zip(judged, bounds, strict=True)
        ]
        return CheckOutcome(
            _AGREEMENT,
            passed=all(wanted.is_reached(share, bound) for (_, share), bound in zip(judged, bounds, strict=True)),
            severity=self.severity,
            description=". ".join(lines) + "." if lines else "Nothing to compare.",
            metadata={},
        )


def _chance(p_value: float, level: float, n_requests: int, least: float) -> str:
    """Describe the chance of too small a share, and whether so few requests could have failed the check."""
    shown = f"p = {p_value:.2g} in this look, {min(1.0, p_value * ALPHA / level):.2g} over all looks"
    # The worst case: not one of them is the same
    short = share_p_below(0, n_requests, least) >= level
    return f" ({shown}; not decided: too few rows)" if short else f" ({shown})"


def _with_keys(rows: Any, key: str, wanted: pa.ChunkedArray, read: Collection[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows with these keys, marked to be asked in real time."""
    keys = set(wanted.to_pylist())
    for batch in record_batches(rows, read):
        kept = batch
        # without the key column, the plan raises the error
        if key in batch.schema.names:
            kept = batch.filter(pa.array([value in keys for value in batch.column(key).to_pylist()], pa.bool_()))
        yield marked(kept)
