"""Read the history of models on a dataset's rows from the ledger and the payload store: answers, tokens, days.

A record is of one model with one definition: answers to another prompt or with other parameters are not evidence. A
cascade has two records, its model's and its oracle's. Only complete submissions count, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.forecast import Billed
from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.files.request_files import definition_in
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.types import Outcome

__all__ = ["ANSWERS", "ModelHistory", "Run", "labeling_in_ledger", "read_model_histories"]

_ID, _OUTCOME = "llm_request_id", "llm_outcome"

ANSWERS = ("partition", "row", _ID, _OUTCOME, "label", "score", "is_drawn")
"""The columns of answers: one for each row that was asked about, with its key as text. `is_drawn`: it was asked without
regard to any score, so that such rows stand for all.
"""

# So many submissions of a dataset are looked at, and rows of one model are read, the newest first.
_REMEMBERED, _MOST_ROWS = 200, 200_000


@dataclass(frozen=True)
class Run:
    """Figures of one submission for one model. `rows` and `requests` are all of the submission's."""

    partition: str
    at: datetime
    rows: int
    requests: int
    billed: Billed | None
    input_bound: int | None


@dataclass(frozen=True, eq=False)
class ModelHistory:
    """One model's record on a dataset.

    Attributes:
        labeling: Definition of its requests; never a cascade.
        runs: Its submissions, oldest first.
        answers: See ANSWERS. None: not read, or not stored any more.
        lost: Runs whose files were pruned or are damaged.
        otherwise: Runs of the same model that asked otherwise.
    """

    labeling: Labeling
    runs: Sequence[Run] = ()
    answers: pa.Table | None = None
    lost: int = 0
    otherwise: int = 0

    @property
    def model(self) -> str:
        return self.labeling.model

    @property
    def partitions(self) -> list[str]:
        return sorted({run.partition for run in self.runs})


@dataclass
class _Asked:
    """Submissions that asked one model alike, newest first. `levels`: of those that were cascades."""

    labeling: Labeling
    is_oracle: bool
    submissions: list[tuple[Submission, Levels | None]] = field(default_factory=list)


def labeling_in_ledger(deployment: Deployment, asset: str) -> Labeling | None:
    """Return the newest definition of an asset in the ledger; None if there is none."""
    for submission in deployment.ledger.submissions.list_all(
        deployment.namespace, assets=[asset], limit=_REMEMBERED, newest=True
    ):
        if (stored := definition_in(deployment.payloads, submission.manifest_path)) is not None:
            return _labeling_of(asset, stored)
    return None


def _labeling_of(asset: str, stored: Mapping[str, Any]) -> Labeling:
    asked = stored["asked"]
    own = Labeling(asset, asked["model"], stored["key"], Prompt(user="-"), params=asked["params"])
    return own.as_of(stored)


def read_model_histories(
    deployment: Deployment, labeling: Labeling, target: str, score: str | None
) -> list[ModelHistory]:
    """Return a record of each model of a dataset, first the models of its present definition, even without a run.

    Args:
        deployment: Deployment whose ledger and payloads are read.
        labeling: The dataset's present definition.
        target: The column of the response whose values are read.
        score: The column of scores, if there is one.
    """
    present = [replace(labeling, cascade=None), *labeling.models[1:]]
    asked = {_key(each): _Asked(each, is_oracle=at > 0) for at, each in enumerate(present)}
    declared = {each.model for each in present}
    count = len(asked)
    newest: dict[str, str] = {}
    otherwise: dict[str, int] = {}
    gone: dict[str, int] = {}
    for submission in deployment.ledger.submissions.list_all(
        deployment.namespace, assets=[labeling.asset], limit=_REMEMBERED, newest=True
    ):
        if not submission.is_settled:
            continue
        stored = definition_in(deployment.payloads, submission.manifest_path)
        if stored is None:
            model = f"{submission.provider}/{submission.model}"
            gone[model] = gone.get(model, 0) + 1
            continue
        sent = labeling.as_of(stored)
        levels = deployment.levels(sent, submission)
        models = [replace(sent, cascade=None), *(sent.models[1:] if sent.cascade is not None else ())]
        for at, each in enumerate(models):
            key = _key(each)
            # A model that is not declared any more keeps its newest definition.
            wanted = key if each.model in declared else newest.setdefault(each.model, key)
            if key != wanted or (each.model in declared and key not in asked):
                otherwise[each.model] = otherwise.get(each.model, 0) + 1
            elif target in each.reader.schema.names:
                known = asked.setdefault(key, _Asked(each, is_oracle=at > 0))
                known.submissions.append((submission, levels))
    shards: dict[str, list[Shard]] = {}
    records = [
        replace(record, otherwise=otherwise.get(record.model, 0), lost=record.lost + gone.get(record.model, 0))
        for record in (_record(deployment, one, target, score, shards) for one in asked.values())
    ]
    # A fallback answers requests that another model did not: it has no record.
    return [record for at, record in enumerate(records) if record.runs or at < count]


def _key(labeling: Labeling) -> str:
    return canonical_json({**labeling.definition["asked"], "cascade": None})


def _record(
    deployment: Deployment, asked: _Asked, target: str, score: str | None, known: dict[str, list[Shard]]
) -> ModelHistory:
    labeling, runs, tables, lost, left = asked.labeling, [], [], 0, _MOST_ROWS
    by_partition: dict[str, list[tuple[Submission, Levels | None, list[Shard]]]] = {}
    for submission, levels in asked.submissions:
        if submission.submission_id not in known:
            known[submission.submission_id] = deployment.ledger.shards.of_submission(submission.submission_id)
        own = [
            shard
            for shard in known[submission.submission_id]
            if f"{shard.provider}/{shard.model}" == labeling.model and shard.batch.sent_at is not None
        ]
        by_partition.setdefault(submission.partition, []).append((submission, levels, own))
        if any(shard.results_path for shard in own):
            runs.append(_run(labeling, submission, levels, own))
    for partition, sent in by_partition.items():
        if left <= 0:
            break
        try:
            table = _answers(deployment, labeling, partition, sent, target, score)
        except (LLMBatchError, OSError, pa.ArrowException):
            lost += 1
            continue
        if len(table):
            tables.append(table)
            left -= len(table)
    answers = pa.concat_tables(tables).combine_chunks() if tables else None
    return ModelHistory(labeling, tuple(sorted(runs, key=lambda run: run.at)), answers, lost)


def _run(labeling: Labeling, submission: Submission, levels: Levels | None, sent: Sequence[Shard]) -> Run:
    bounds = [shard.input_bound for shard in sent]
    return Run(
        partition=submission.partition,
        at=submission.settled_at or submission.created_at,
        rows=submission.rows,
        requests=submission.requests,
        billed=_billed(submission, is_oracle=levels is not None and levels.oracle == labeling.model),
        input_bound=None if None in bounds else max(bound for bound in bounds if bound is not None),
    )


def _billed(submission: Submission, *, is_oracle: bool) -> Billed | None:
    """Return a request's figures, for `learn`: rows differ here, so one request counts as one token."""
    told = submission.billed or {}
    known = told.get("oracle", {}) if is_oracle else told
    if "requests" not in known:
        return None
    billed = Billed(*(known[name] for name in Billed._fields))
    return billed._replace(tokens=billed.requests)


def _answers(
    deployment: Deployment,
    labeling: Labeling,
    partition: str,
    sent: Sequence[tuple[Submission, Levels | None, Sequence[Shard]]],
    target: str,
    score: str | None,
) -> pa.Table:
    """Return the answers to the rows of one partition, from its submissions, newest first."""
    submission, levels, _ = sent[0]
    payloads = deployment.payloads
    manifest = payloads.read_table(submission.manifest, [labeling.key, _ID])
    manifest = manifest.filter(pc.is_valid(manifest[_ID])).combine_chunks()
    has_score = score is not None and score in labeling.result_schema.names
    columns = [_ID, _OUTCOME, target, *([score] if has_score and score is not None else [])]
    results = [
        payloads.read_table(shard.results_path, columns)
        for _, _, shards in sent
        for shard in sorted(shards, key=lambda shard: (shard.wave, shard.number), reverse=True)
        if shard.results_path
    ]
    if not results:
        return pa.table({name: pa.nulls(0) for name in ANSWERS})
    rows = pa.concat_tables(results).combine_chunks()
    is_good = pc.fill_null(pc.equal(rows[_OUTCOME], Outcome.SUCCEEDED.value), fill_value=False)
    # The newest success of a request counts, else the newest that came.
    rows = pa.concat_tables([rows.filter(is_good), rows.filter(pc.invert(is_good))]).combine_chunks()
    at = pc.index_in(manifest[_ID].combine_chunks(), rows[_ID].combine_chunks())
    asked = pc.is_valid(at)
    manifest, drawn = manifest.filter(asked), pa.array(_are_drawn(manifest[_ID], labeling, levels)).filter(asked)
    chosen = rows.take(at.drop_null())
    good = pc.fill_null(pc.equal(chosen[_OUTCOME], Outcome.SUCCEEDED.value), fill_value=False)
    scores = chosen[score].cast(pa.float64()) if has_score else pa.nulls(len(chosen), pa.float64())
    return pa.table(
        {
            "partition": pa.repeat(pa.scalar(partition), len(chosen)),
            "row": manifest[labeling.key].cast(pa.string()),
            _ID: manifest[_ID].cast(pa.string()),
            _OUTCOME: chosen[_OUTCOME].cast(pa.string()),
            "label": pc.if_else(good, chosen[target], pa.scalar(None, chosen[target].type)),
            "score": pc.if_else(good, scores, pa.scalar(None, pa.float64())),
            "is_drawn": drawn,
        }
    )


def _are_drawn(requests: pa.ChunkedArray, labeling: Labeling, levels: Levels | None) -> np.ndarray[Any, Any]:
    """Return which rows were asked without regard to a score. A request that many rows share was drawn for some."""
    if levels is None or levels.oracle != labeling.model or levels.sampled is None:
        return np.ones(len(requests), bool)
    counts: dict[str, int] = {}
    for request_id in levels.sampled:
        counts[request_id] = counts.get(request_id, 0) + 1
    return np.fromiter(_take(requests.to_pylist(), counts), bool, len(requests))


def _take(requests: Iterable[str], counts: dict[str, int]) -> Iterable[bool]:
    for request_id in requests:
        left = counts.get(request_id, 0)
        counts[request_id] = left - 1
        yield left > 0
