"""Gold from human labels: judgments in the ledger become a table with one agreed label per row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, Unpack

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.dataset import Dataset, dataset_of
from dagster_llm_batch.assets.translator import ANNOTATES_KEY
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, PartitionOptions, Tables, code_digest
from dagster_llm_batch.evaluation.candidates import check_targets
from dagster_llm_batch.evaluation.stop_rule import SECONDS
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.evaluation.thresholds import AtLeast
from dagster_llm_batch.metadata import JUDGMENTS_KEY, figure_key
from dagster_llm_batch.metrics import LabelerAgreement, Labels, Target, agreement_among, plain_text
from dagster_llm_batch.metrics.annotation import Agreed, Rater, Votes, agreed_labels, fast_share
from dagster_llm_batch.metrics.gold_weights import PARTITION, ROUND, ROWS, SAMPLE_COLUMNS, WEIGHT
from dagster_llm_batch.metrics.joining import MAX_CLASSES
from dagster_llm_batch.metrics.schemas import evaluation_extra, table_of
from dagster_llm_batch.metrics.tables import percent, rows_markdown
from dagster_llm_batch.storage.ledger.judgments import judgments_version, standing_judgments
from dagster_llm_batch.storage.ledger.records import Judgment
from dagster_llm_batch.text import column_text
from dagster_llm_batch.types import ResponseKind

if TYPE_CHECKING:
    from dagster_llm_batch.engine import Labeling

__all__ = ["annotation_assets", "gold_of_judgments"]

Method = Literal["auto", "majority", "dawid_skene"]

OUTCOME = "gold_outcome"
AGREED, TIED, UNDECIDABLE = "agreed", "tied", "undecidable"

_HINT = "Materialize the labels again if the key has changed."
_MOST_FAST, _LEAST_ANSWERS = 0.1, 5
"""Largest share of a rater's answers that may be faster than `min_seconds`, and the least number of answers to
check.
"""

_SAMPLE_TYPES = {WEIGHT: pa.float64(), ROUND: pa.int64(), ROWS: pa.int64(), PARTITION: pa.string()}
_DOCS = {
    OUTCOME: "agreed; tied (another label has as many votes); undecidable (most people found it so)",
    "agreement": "share of the people with a label who chose this one; for several columns the least",
    "n_raters": "people who gave a label",
    "n_undecidable": "people who found the row not decidable",
    SECONDS: "seconds that all people together took for the row; null if unknown",
    WEIGHT: "1 / probability of being drawn in its round; null for rows that were not drawn",
    ROUND: "round of gold_sample_assets in which the row was drawn",
    ROWS: "rows that there were in that round",
    PARTITION: "partition that was drawn from",
    "annotator": "person who judged the rows",
    "target": "column that was judged",
    "n_labels": "rows that this person labeled",
    "accuracy": "probability of being right, as Dawid and Skene's model estimates it; null by majority",
    "median_seconds": "median seconds from opening the row to the answer",
    "fast": "share of the answers that took less than min_seconds",
}
_RATER_DOCS = _DOCS | {
    "n_undecidable": "rows that this person found not decidable",
    "agreement": "share of this person's labels that equal the agreed label, on rows that others judged, too",
}


@checked_options(PartitionOptions, EvaluationBuilder)
def annotation_assets(
    *,
    name: str,
    candidates: Sequence[dg.AssetsDefinition],
    target: str | Sequence[str] | None = None,
    method: Method = "auto",
    min_alpha: float | AtLeast | None = None,
    min_seconds: float = 0.5,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    **options: Unpack[PartitionOptions],
) -> list[dg.AssetsDefinition]:
    """Declare gold: human labels of a dataset's rows from the page of `dagster-llm-batch review`, one label per row.

        judgments (ledger) ─▶ <name>           key, agreed label, agreement, raters, and how the row was drawn
                              <name>_raters    each person: answers, agreement, accuracy, seconds

    If people differ, the majority counts. With three people or more, the model of Dawid and Skene decides: it
    estimates how often each person errs. A row that is tied, or that most people found undecidable, has null as its
    label: it is not asked again and counts in no figure. Rows that `gold_sample_assets` drew keep its columns
    `sample_…`, so that evaluations and estimates weight them. If there are such rows, rows that somebody picked by hand
    represent only themselves and are left out (counted in the metadata).

    `build_llm_batch_sensor` requests a run after people have judged and then paused for half a minute, and every five
    minutes while they continue. The run sends nothing to a provider. Needs the extra `evaluation` when it runs.

    Args:
        name: Name of the asset.
        candidates: The one labeled dataset whose rows are judged, as `llm_batch_assets` returned it. Its key, the
            response's columns and the LLMBatchResource are taken from it.
        target: Column, or columns, of the response that become gold. Default: all. A fractional number becomes the
            median of the answers; every other value is a class.
        method: "majority", "dawid_skene", or "auto": "dawid_skene" for columns with answers of three people or more,
            else "majority".
        min_alpha: Least alpha of Krippendorff over the rows that several people judged, of every column with classes,
            as an asset check. `AtLeast(0.8, confidence=0.95)` asks for a lower bound. Without such rows the check
            passes, and its description gives the reason.
        min_seconds: Answers faster than this count as careless: the check `speed` fails if a person has more than
            one in ten of them, from five answers on.
        check_severity: Severity of a check that fails.
        blocking: Whether a failed check holds back downstream assets.
        partitions_def: Partitions of the gold, as for the labels. Default: one table of all judgments.
        frame, io_manager_key, backfill_policy: As for `evaluation_assets`.
        options: Dagster's own, as for `evaluation_assets`. With `automation_condition=None` the sensor requests no run.

    Returns:
        The assets, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    dataset = dataset_of(candidates)
    if dataset.labeling.reader.format.kind is ResponseKind.EMBEDDING:
        raise ConfigError(f"{dataset.name} has embeddings, which people cannot judge. Give a dataset with labels.")
    columns = dataset.labeling.reader.schema.names
    targets = tuple(columns if target is None else [target] if isinstance(target, str) else target)
    if not targets or len(set(targets)) < len(targets):
        raise ConfigError(
            f"target={', '.join(targets) or 'nothing'}: give at least one column of the response, and each once."
        )
    check_targets(targets, columns, dataset.key)
    if min_seconds < 0:
        raise ConfigError(f"min_seconds={min_seconds!r} must be 0 or more.")
    least = None if min_alpha is None else AtLeast.of_labels("min_alpha", min_alpha)
    if least is not None and not -1 <= least.least <= 1:
        raise ConfigError(f"min_alpha={least.least!r}: alpha is between -1 and 1.")
    builder = EvaluationBuilder(name=name, role="annotation", **options)
    builder.check_partitions(list(candidates))
    annotation = _Annotation(builder, dataset, targets, method, least, min_seconds, check_severity)
    shared: dict[str, Any] = {
        "deps": [dataset.key],
        "code_version": code_digest("1", dataset.name, targets, method),
    }
    rows, columns = f"rows of {dataset.name} that people judged", column_text(targets)
    gold = f"Gold: one label for each of the {rows}, in {columns}."
    raters = f"Statistics of each person about the {rows}, in {columns}."
    specs = {
        "": builder.spec(gold, kinds={"table"}, **shared),
        "raters": builder.spec(raters, suffix="raters", kinds={"table"}, **shared),
    }
    if builder.automation_condition == "default":
        specs[""] = specs[""].merge_attributes(metadata={ANNOTATES_KEY: dataset.name})
    checks = [
        builder.check(
            "speed",
            f"At most {percent(_MOST_FAST)} of each person's answers took less than {min_seconds:g} s.",
            blocking=blocking,
        )
    ]
    if least is not None:
        meaning = f"Krippendorff's alpha of the people is at least {least}, on rows that several judged."
        checks.append(builder.check("alpha", meaning, blocking=blocking))
    return [builder.asset(specs, annotation.prepare, checks, {dataset.resource_key})]


@dataclass(frozen=True, eq=False)
class _Judged:
    """Judgments of rows, as columns: `keys` names the rows, `row` is the row number of each judgment.

    `answers` has the response's columns, with a row for each of `labels`: the judgments that contain a label.
    """

    keys: Sequence[str]
    judgments: Sequence[Judgment]
    row: Sequence[int]
    labels: Sequence[int]
    answers: pa.Table

    @classmethod
    def of(cls, judgments: Sequence[Judgment], labeling: Labeling) -> _Judged:
        """Read the answers as replies are read, so that gold has the types of the labels.

        Skip an answer that does not fit the response any more because the response has changed.
        """
        keys = sorted({judgment.row_key for judgment in judgments})
        number = {key: at for at, key in enumerate(keys)}
        labels = [at for at, judgment in enumerate(judgments) if judgment.kind == "label"]
        answers = [dict(judgments[at].answer or {}) for at in labels]
        reader = labeling.reader
        if reader.format.kind is ResponseKind.TEXT:
            texts = [next(iter(answer.values()), None) for answer in answers]
        else:
            texts = [json.dumps(answer) for answer in answers]
        read = reader.read(texts, [None] * len(texts))
        fits = [at for at, reason in enumerate(read.reasons) if reason is None]
        rows = [number[judgment.row_key] for judgment in judgments]
        return cls(keys, judgments, rows, [labels[at] for at in fits], read.columns.take(pa.array(fits, pa.int64())))

    def only(self, kept: Callable[[int], bool]) -> _Judged:
        """Return the judgments of some of the rows, chosen by row number."""
        there = [at for at, row in enumerate(self.row) if kept(row)]
        place, answered = {at: new for new, at in enumerate(there)}, [kept(self.row[at]) for at in self.labels]
        rows = sorted({self.row[at] for at in there})
        number = {row: new for new, row in enumerate(rows)}
        return _Judged(
            [self.keys[row] for row in rows],
            [self.judgments[at] for at in there],
            [number[self.row[at]] for at in there],
            [place[at] for at, yes in zip(self.labels, answered, strict=True) if yes],
            self.answers.filter(pa.array(answered, pa.bool_())),
        )

    @cached_property
    def raters(self) -> list[str]:
        """Everybody who judged, by name."""
        return sorted({judgment.annotator for judgment in self.judgments})

    @cached_property
    def samples(self) -> list[Mapping[str, Any]]:
        """How each row was drawn; an empty mapping for other rows. A row is drawn once, for all its judges."""
        samples: list[Mapping[str, Any]] = [{}] * len(self.keys)
        for judgment, row in zip(self.judgments, self.row, strict=True):
            # A table of somebody's own may have columns by these names that hold something else.
            if judgment.sample and isinstance(judgment.sample.get(WEIGHT), int | float) and not samples[row]:
                samples[row] = judgment.sample
        return samples

    def votes(self, target: str) -> tuple[Votes, list[Any]]:
        """Return the votes on a column, and the value of each class."""
        with evaluation_extra("Gold from judgments"):
            import numpy as np  # noqa: PLC0415  # optional dependency
        said = [
            (self.row[at], self.judgments[at].annotator, value)
            for at, value in zip(self.labels, self.answers[target].to_pylist(), strict=True)
            if value is not None
        ]
        # Nested values are compared as JSON text, since they are not hashable
        names = [json.dumps(as_json(value), sort_keys=True, default=str) for *_, value in said]
        values = dict(zip(names, (value for *_, value in said), strict=True))
        code, rater = ({name: at for at, name in enumerate(some)} for some in (sorted(values), self.raters))
        votes = Votes(
            np.array([row for row, *_ in said], dtype=np.int64),
            np.array([rater[who] for _, who, _ in said], dtype=np.int64),
            np.array([code[name] for name in names], dtype=np.int64),
            len(self.keys),
            len(rater),
            max(1, len(code)),
        )
        return votes, [values[name] for name in sorted(values)]

    def counts(self, kind: str) -> Counter[int]:
        """Return the number of judgments of a kind per row; do not count labels that do not fit."""
        fits = set(self.labels)
        return Counter(
            row
            for at, (row, judgment) in enumerate(zip(self.row, self.judgments, strict=True))
            if judgment.kind == kind and (kind != "label" or at in fits)
        )


@dataclass(frozen=True)
class _Column:
    """One column of gold: its values by row, with null for rows without a value; which rows are tied; and the agreement
    of the raters (None for fractional numbers).
    """

    values: pa.Array
    tied: Sequence[bool]
    agreed: Agreed | None
    votes: Votes


@dataclass(frozen=True)
class _Annotation:
    """One gold, in Dagster's words."""

    builder: EvaluationBuilder
    dataset: Dataset
    targets: tuple[str, ...]
    method: Method
    min_alpha: AtLeast | None
    min_seconds: float
    severity: dg.AssetCheckSeverity

    def prepare(self, context: dg.AssetExecutionContext) -> Callable[[str | None], Tables]:
        """Return a function that computes a partition."""
        return lambda partition: self._tables(context, partition)

    def _tables(self, context: dg.AssetExecutionContext, partition: str | None) -> Tables:
        engine, stored, labeling = self.dataset.engine(context), StoredTables(context), self.dataset.labeling
        here = (engine.namespace, self.dataset.name)
        # Read this first: the next run then sees judgments that arrive meanwhile as new.
        states = engine.ledger.judgments.states(*here)
        parts = states if partition is None else [part or "" for part in stored.mapped(self.dataset.key, partition)]
        version = judgments_version([state for part, state in states.items() if part in parts])
        standing = [
            judgment
            for judgment in standing_judgments(engine.ledger.judgments.read(*here))
            if judgment.kind != "skip" and (partition is None or judgment.partition in parts)
        ]
        if "" in states and "" not in parts:
            context.log.warning(
                f"{states[''].n:,} judgments are left out, since they have no partition: the judged table has none, "
                "and the partition of the row was unknown. Without partitions_def they count."
            )
        _refuse_repeated(standing, self.dataset)
        # A judgment without a partition, repeated later with one, is of the same row: the later one counts.
        standing = list({(judgment.annotator, judgment.row_key): judgment for judgment in standing}.values())
        everything = _Judged.of(standing, labeling)
        drawn = [bool(sample) for sample in everything.samples]
        judged = everything.only(drawn.__getitem__) if any(drawn) else everything
        columns = {target: _agreed(judged, target, self.method) for target in self.targets}
        raters = self._raters(everything, judged, columns)
        alphas = [alpha for target in self.targets if (alpha := self._alpha(judged, target)) is not None]

        def gold() -> Computed:
            table = self._gold(stored, judged, columns)
            counts = Counter(table[OUTCOME].to_pylist())
            metadata: dict[str, Any] = {
                JUDGMENTS_KEY: version,
                "llm_batch/gold_rows": counts[AGREED],
                "llm_batch/rows_tied": counts[TIED],
                "llm_batch/rows_undecidable": counts[UNDECIDABLE],
                "llm_batch/rows_not_drawn": len(everything.keys) - len(judged.keys),
                "llm_batch/answers_that_do_not_fit": sum(one.kind == "label" for one in standing)
                - len(everything.labels),
                "llm_batch/minutes_of_people": round(sum(one.seconds or 0.0 for one in standing) / 60, 1),
                "llm_batch/raters": dg.MetadataValue.md(_raters_markdown(raters)),
                "llm_batch/method": ", ".join(
                    f"{target}: {column.agreed.method if column.agreed else 'median'}"
                    for target, column in columns.items()
                ),
                **{figure_key("alpha", one.target): one.alpha for one in alphas if one.alpha is not None},
            }
            check_results = [self._speed(raters), *([] if self.min_alpha is None else [self._agreement(alphas)])]
            return Computed(table, metadata, _DOCS, check_results)

        return {"raters": lambda: Computed(table_of(raters, Rater), {}, _RATER_DOCS), "": gold}

    def _gold(self, stored: StoredTables, judged: _Judged, columns: Mapping[str, _Column]) -> pa.Table:
        """Return the table of gold, by key."""
        n_labels, n_undecidable = judged.counts("label"), judged.counts("undecidable")
        rows = range(len(judged.keys))
        outcomes = [
            UNDECIDABLE
            if n_undecidable[row] > n_labels[row]
            else TIED
            if n_undecidable[row] == n_labels[row] or any(column.tied[row] for column in columns.values())
            else AGREED
            for row in rows
        ]
        # If people disagree on whether a row is decidable, no column of it is gold.
        decided = pa.array([n_labels[row] > n_undecidable[row] for row in rows], pa.bool_())
        shares = [
            min(
                (float(c.agreed.share[row]) for c in columns.values() if c.agreed and c.agreed.codes[row] >= 0),
                default=None,
            )
            for row in rows
        ]
        seconds: dict[int, float] = {}
        for judgment, row in zip(judged.judgments, judged.row, strict=True):
            if judgment.seconds is not None:
                seconds[row] = seconds.get(row, 0.0) + judgment.seconds
        samples = judged.samples
        return pa.table(
            {
                self.dataset.labeling.key: self._keys(stored, judged.keys),
                **{name: pc.if_else(decided, c.values, pa.scalar(None, c.values.type)) for name, c in columns.items()},
                OUTCOME: pa.array(outcomes, pa.string()),
                "agreement": pa.array(shares, pa.float64()),
                "n_raters": pa.array([n_labels[row] for row in rows], pa.int64()),
                "n_undecidable": pa.array([n_undecidable[row] for row in rows], pa.int64()),
                SECONDS: pa.array([seconds.get(row) for row in rows], pa.float64()),
                **{name: _sampled(samples, name) for name in SAMPLE_COLUMNS},
            }
        )

    def _keys(self, stored: StoredTables, keys: Sequence[str]) -> pa.Array:
        """Return the keys as the labels have them. Judgments name rows by texts."""
        texts, labels, key = pa.array(keys, pa.large_string()), self.dataset.key, self.dataset.labeling.key
        part = next(iter(stored.partitions(labels)), "")
        if part == "":
            raise InputError(f"{labels.to_user_string()} is not materialized. Materialize it first.")
        kind = stored.load(labels, part, [key], hint=_HINT)[key].type
        try:
            return texts.cast(kind)
        except pa.ArrowException as error:
            raise InputError(
                f"'{key}' of {labels.to_user_string()} is {kind}, and people judged rows with keys of another type: "
                f"{error}. {_HINT}"
            ) from error

    def _raters(self, everything: _Judged, judged: _Judged, columns: Mapping[str, _Column]) -> list[Rater]:
        seconds: dict[str, list[float | None]] = {name: [] for name in everything.raters}
        undecidable: Counter[str] = Counter()
        for judgment in everything.judgments:
            seconds[judgment.annotator].append(judgment.seconds)
            undecidable[judgment.annotator] += judgment.kind == "undecidable"
        place = {name: at for at, name in enumerate(judged.raters)}
        return [
            Rater(
                annotator=name,
                target=target,
                n_labels=0 if name not in place else int((column.votes.raters == place[name]).sum()),
                n_undecidable=undecidable[name],
                agreement=None if name not in place else _with_others(column, place[name]),
                accuracy=None
                if name not in place or column.agreed is None or column.agreed.right is None
                else float(column.agreed.right[place[name]]),
                median_seconds=median(known) if (known := [one for one in seconds[name] if one is not None]) else None,
                fast=fast_share(seconds[name], self.min_seconds) if len(known) >= _LEAST_ANSWERS else None,
            )
            for target, column in columns.items()
            for name in everything.raters
        ]

    def _alpha(self, judged: _Judged, target: str) -> LabelerAgreement | None:
        """Measure the agreement of people; return None for a column without classes."""
        kind = judged.answers.schema.field(target).type
        values = judged.answers[target].combine_chunks()
        if not (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            return None
        if len(values.unique()) > MAX_CLASSES:
            return None
        who = pa.array([judged.judgments[at].annotator for at in judged.labels], pa.string())
        keys = pa.array([judged.keys[judged.row[at]] for at in judged.labels], pa.string())
        by_rater = {}
        for name in judged.raters:
            mine = pc.equal(who, name)
            by_rater[name] = (keys.filter(mine), values.filter(mine))
        labels = Labels.of(Target(target), by_rater, key=self.dataset.labeling.key)
        bound = None if self.min_alpha is None else self.min_alpha.both_ends
        return agreement_among(labels, self.builder.name, bound_confidence=bound)

    def _speed(self, raters: Sequence[Rater]) -> CheckOutcome:
        fast = {one.annotator: one.fast for one in raters if one.fast is not None and one.fast > _MOST_FAST}
        shown = ", ".join(f"{plain_text(name)}: {percent(part)}" for name, part in fast.items())
        return CheckOutcome(
            "speed",
            passed=not fast,
            severity=self.severity,
            description=f"Answers in less than {self.min_seconds:g} s: {shown}. Review these answers, and ask again."
            if fast
            else f"At most {percent(_MOST_FAST)} of each person's answers took less than {self.min_seconds:g} s.",
            metadata={},
        )

    def _agreement(self, alphas: Sequence[LabelerAgreement]) -> CheckOutcome:
        wanted = self.min_alpha
        assert wanted is not None
        judged = [one for one in alphas if one.n_rows]
        lines = [
            f"{plain_text(one.target)}: {'not defined' if one.alpha is None else f'{one.alpha:.3f}'}"
            f"{wanted.shown_bound(one.alpha_bound)} on {one.n_rows:,} rows; required: at least {wanted}"
            for one in judged
        ]
        return CheckOutcome(
            "alpha",
            passed=all(wanted.is_reached(one.alpha, one.alpha_bound) for one in judged),
            severity=self.severity,
            description=". ".join(lines) + "." if lines else "No row was judged by two people.",
            metadata={figure_key("alpha", one.target): one.alpha for one in judged if one.alpha is not None},
        )


def gold_of_judgments(judgments: Sequence[Judgment], labeling: Labeling, target: str) -> pa.Table:
    """Return what people agree on of one column, without an asset: a row for each that is decided.

    The columns are `row` (its key as text), `partition` (if judgments name some), the target, and the sample columns if
    rows were drawn. Then only drawn rows count.
    """
    standing = [one for one in standing_judgments(judgments) if one.kind != "skip"]
    # Several partitions may have a row with the same key.
    named = [replace(one, row_key=json.dumps([one.partition, one.row_key])) for one in standing]
    judged = _Judged.of(named, labeling)
    drawn = [bool(sample) for sample in judged.samples]
    judged = judged.only(drawn.__getitem__) if any(drawn) else judged
    column, labels, undecidable = _agreed(judged, target, "auto"), judged.counts("label"), judged.counts("undecidable")
    places = [json.loads(key) for key in judged.keys]
    columns = {
        "row": pa.array([row for _, row in places], pa.string()),
        target: column.values,
        **({name: _sampled(judged.samples, name) for name in SAMPLE_COLUMNS} if any(drawn) else {}),
    }
    if any(partition for partition, _ in places):
        columns["partition"] = pa.array([partition for partition, _ in places], pa.string())
    is_decided = pa.array([labels[row] > undecidable[row] for row in range(len(places))], pa.bool_())
    return pa.table(columns).filter(pc.and_(is_decided, pc.is_valid(column.values)))


def _refuse_repeated(judgments: Sequence[Judgment], dataset: Dataset) -> None:
    """Raise InputError for a key that people judged in several partitions: whose label it would be is not known."""
    places: dict[str, str] = {}
    for judgment in judgments:
        if judgment.partition and places.setdefault(judgment.row_key, judgment.partition) != judgment.partition:
            raise InputError(
                f"Rows of {dataset.name} with the {dataset.labeling.key} {judgment.row_key!r} were judged in the "
                f"partitions {places[judgment.row_key]!r} and {judgment.partition!r}. Give partitions_def= as of the "
                "labels, so that each has its own gold."
            )


def _agreed(judged: _Judged, target: str, method: Method) -> _Column:
    """Return the gold of a column."""
    votes, values = judged.votes(target)
    kind = judged.answers.schema.field(target).type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        by_row: dict[int, list[Any]] = {}
        for row, code in zip(votes.rows.tolist(), votes.codes.tolist(), strict=True):
            by_row.setdefault(row, []).append(values[code])
        numbers = [median(by_row[row]) if row in by_row else None for row in range(votes.n_rows)]
        return _Column(pa.array(numbers, kind), [False] * votes.n_rows, None, votes)
    agreed = agreed_labels(votes, method)
    codes = agreed.codes.tolist()
    voted = set(votes.rows.tolist())
    return _Column(
        pa.array([None if code < 0 else values[code] for code in codes], kind),
        [code < 0 and row in voted for row, code in enumerate(codes)],
        agreed,
        votes,
    )


def _with_others(column: _Column, rater: int) -> float | None:
    """Return the share of a rater's answers that equal the agreed label, on decided rows that others judged too."""
    if column.agreed is None:
        return None
    several = column.votes.counts().sum(axis=1) > 1
    rows, codes = column.votes.rows, column.votes.codes
    mine = (column.votes.raters == rater) & several[rows] & (column.agreed.codes[rows] >= 0)
    return float((column.agreed.codes[rows] == codes)[mine].mean()) if mine.any() else None


def _sampled(samples: Sequence[Mapping[str, Any]], name: str) -> pa.Array:
    """Return a column of SAMPLE_COLUMNS. A file of numbers has whole ones as fractional ones."""
    kind = _SAMPLE_TYPES[name]
    values = [sample.get(name) for sample in samples]
    if pa.types.is_string(kind):
        return pa.array([None if value is None else str(value) for value in values], kind)
    numbers = [value if isinstance(value, int | float) else None for value in values]
    return pa.array(numbers, pa.float64()).cast(kind, safe=False)


def _raters_markdown(raters: Sequence[Rater]) -> str:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return rows_markdown(
        [
            {
                "annotator": plain_text(one.annotator),
                "column": plain_text(one.target),
                "labels": f"{one.n_labels:,}",
                "not decidable": f"{one.n_undecidable:,}",
                "agrees": shown(one.agreement, ".1%"),
                "right by the model": shown(one.accuracy, ".1%"),
                "median seconds": shown(one.median_seconds, ".1f"),
                "too fast": shown(one.fast, ".1%"),
            }
            for one in raters
        ]
    )
