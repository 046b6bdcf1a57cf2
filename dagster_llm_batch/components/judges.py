"""LLMs that judge answers, in YAML."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import dagster as dg

from dagster_llm_batch.components.attributes import (
    Candidates,
    Checked,
    RowKey,
    Seed,
    Tabled,
)
from dagster_llm_batch.components.base import FactoryComponent
from dagster_llm_batch.components.labeling import Asking, Llm
from dagster_llm_batch.components.partitions import PARTITIONS
from dagster_llm_batch.components.resolution import about
from dagster_llm_batch.components.scaffolders import PairwiseJudgeScaffolder, RubricJudgeScaffolder
from dagster_llm_batch.components.settings import PROMPT
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.evaluation import pairwise_judge_assets, rubric_judge_assets

__all__ = ["LLMBatchPairwiseJudgeComponent", "LLMBatchRubricJudgeComponent"]

_KEYWORDS = ("description", *(one.name for one in dataclasses.fields(Asking)))

AnswerColumns = Annotated[
    str | Sequence[str],
    about("Column, or columns, of the candidates with the answer.", "summary", ["topic", "why"], kind=str | list[str]),
]
AskedRows = Annotated[Any, about("Key of the asset with what candidates were asked about.", "crm/tickets", kind=str)]
Sample = Annotated[int | None, about("Judge so many rows only, of each partition. Default: all.", 200)]


@dg.scaffold_with(PairwiseJudgeScaffolder)
@dataclass(kw_only=True)
class LLMBatchPairwiseJudgeComponent(Asking, Tabled, Checked, FactoryComponent):
    """An LLM says which of two answers is better, blind and in both orders: win rates with intervals.

    Attributes are the arguments of `pairwise_judge_assets`, by the same names.
    """

    factory = staticmethod(pairwise_judge_assets)
    renamed = {"model": "llm"}  # noqa: RUF012 - `model` is a method of Resolvable
    keywords = _KEYWORDS

    name: Annotated[str, about("Name of the asset with the figures.", "summary_duel")]
    rows: AskedRows
    candidates: Candidates
    key: RowKey
    target: AnswerColumns
    prompt: Annotated[Prompt, PROMPT]
    llm: Llm
    sample: Sample = None
    seed: Seed = 0
    max_inconsistent: Annotated[
        float | None, about("As a check: largest share of rows whose verdict changes with the order.", 0.2)
    ] = None
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None


@dg.scaffold_with(RubricJudgeScaffolder)
@dataclass(kw_only=True)
class LLMBatchRubricJudgeComponent(Asking, Tabled, Checked, FactoryComponent):
    """An LLM scores each answer by the criteria of a rubric: mean scores with intervals.

    Attributes are the arguments of `rubric_judge_assets`, by the same names.
    """

    factory = staticmethod(rubric_judge_assets)
    renamed = {"model": "llm"}  # noqa: RUF012 - `model` is a method of Resolvable
    keywords = _KEYWORDS

    name: Annotated[str, about("Name of the asset with the figures.", "summary_scores")]
    rows: AskedRows
    candidates: Candidates
    key: RowKey
    target: AnswerColumns
    criteria: Annotated[
        Mapping[str, str],
        about("What is judged, by name.", {"faithful": "Does the article say all of it?"}, kind=dict[str, str]),
    ]
    prompt: Annotated[Prompt, PROMPT]
    llm: Llm
    scale: Annotated[tuple[int, int], about("Worst and best score.", [1, 5])] = (1, 5)
    sample: Sample = None
    seed: Seed = 0
    min_score: Annotated[
        Mapping[str, float] | float | None,
        about(
            "As a check: least mean score, of all criteria or by criterion.", 4, kind=float | dict[str, float] | None
        ),
    ] = None
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
