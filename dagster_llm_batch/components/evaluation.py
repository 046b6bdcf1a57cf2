"""The assets of `evaluation` in YAML: a component for each of its factories."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import dagster as dg

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.components.attributes import (
    BackfillPolicy,
    Candidates,
    CheckAttributes,
    Confidence,
    GoldTarget,
    Kinds,
    Rejects,
    ResourceKey,
    RowKey,
    SampleSize,
    Seed,
    TableAttributes,
)
from dagster_llm_batch.components.base import FactoryComponent
from dagster_llm_batch.components.batch import LLMBatchComponent
from dagster_llm_batch.components.labeling import LabelingAttributes, Llm
from dagster_llm_batch.components.partitions import PARTITIONS
from dagster_llm_batch.components.resolution import about, import_object, pointing_at, templated
from dagster_llm_batch.components.scaffolders import (
    AgreementScaffolder,
    CostScaffolder,
    DriftScaffolder,
    EvaluationScaffolder,
    GoldSampleScaffolder,
    PairwiseJudgeScaffolder,
    RubricJudgeScaffolder,
    SkewScaffolder,
)
from dagster_llm_batch.components.settings import PROMPT, REALTIME, TARGET
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Realtime
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation import (
    agreement_assets,
    cost_assets,
    drift_assets,
    evaluation_assets,
    gold_sample_assets,
    pairwise_judge_assets,
    rubric_judge_assets,
    skew_assets,
)

__all__ = [
    "LABELS",
    "LLMBatchAgreementComponent",
    "LLMBatchCostComponent",
    "LLMBatchDriftComponent",
    "LLMBatchEvaluationComponent",
    "LLMBatchGoldSampleComponent",
    "LLMBatchPairwiseJudgeComponent",
    "LLMBatchRubricJudgeComponent",
    "LLMBatchSkewComponent",
]


@dg.scaffold_with(EvaluationScaffolder)
@dataclass(kw_only=True)
class LLMBatchEvaluationComponent(TableAttributes, CheckAttributes, FactoryComponent):
    """Labels measured against gold: coverage, accuracy, F1 and kappa with intervals, and cost per correct label.

    Attributes are the arguments of `evaluation_assets`, by the same names.
    """

    factory = staticmethod(evaluation_assets)

    name: Annotated[str, about("Name of the evaluation asset.", "ticket_eval")]
    gold: Annotated[Any, about("Key of the asset with the true values.", "ticket_gold", kind=str)]
    candidates: Candidates
    key: RowKey
    target: Annotated[Any, TARGET]
    gold_target: GoldTarget = None
    kind: Kinds = "categorical"
    keep: Annotated[
        Sequence[str] | None,
        about("Columns shown beside each mistake. Default: what the candidates keep.", ["body"], kind=list[str] | None),
    ] = None
    rejects: Rejects = None
    confidence: Confidence = None
    regression: Annotated[
        bool, about("Keep the labels that somebody accepted, and check that no candidate is surely worse.")
    ] = False
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
    min_accuracy: Annotated[
        Mapping[str, float] | float | None,
        about("As a check: least accuracy, of all or by candidate.", 0.9, kind=float | dict[str, float] | None),
    ] = None
    min_kappa: Annotated[
        Mapping[str, float] | float | None,
        about("As a check: least kappa, of all or by candidate.", 0.6, kind=float | dict[str, float] | None),
    ] = None
    max_ece: Annotated[
        Mapping[str, float] | float | None,
        about(
            "As a check: most expected calibration error, of all or by candidate.",
            0.1,
            kind=float | dict[str, float] | None,
        ),
    ] = None
    backfill_policy: BackfillPolicy = None


def _labels(context: dg.ResolutionContext, given: str) -> list[dg.AssetsDefinition]:
    name = str(templated(context, given))
    with pointing_at(context):
        if "." in name:
            imported = import_object(context, name)
            definitions = [imported] if isinstance(imported, dg.AssetsDefinition) else imported
            if not isinstance(definitions, list | tuple):
                raise ConfigError(f"{name!r} is a {type(imported).__name__}; give what llm_batch_assets returned.")
            # refuses here, where the line is known
            dataset_of(definitions)
            return list(definitions)
    tree = dg.ComponentLoadContext.from_resolution_context(context).component_tree
    known = {
        dataset_of(component.assets).key.to_user_string(): component.assets
        for component in tree.get_all_components(LLMBatchComponent)
    }
    with pointing_at(context):
        if name not in known:
            raise ConfigError(
                f"{name!r} is no labeled dataset in this project's YAML; it has: {', '.join(sorted(known)) or 'none'}. "
                "One that is defined in Python is named by its import path, as 'package.module.ticket_labels'."
            )
        return known[name]


LABELS: Any = dg.Resolver(
    _labels,
    model_field_type=str,
    description=(
        "Key of a labeled dataset that this project has in YAML, or the import path of what `llm_batch_assets` "
        "returned. Rows, prompt, model and partitions are its."
    ),
    examples=["ticket_labels", "shop.labels.ticket_labels"],
    inject_before_resolve=False,
)


Columns = Annotated[
    str | Sequence[str], about("Column, or columns, with classes.", "topic", ["topic", "urgency"], kind=str | list[str])
]


@dg.scaffold_with(AgreementScaffolder)
@dataclass(kw_only=True)
class LLMBatchAgreementComponent(TableAttributes, CheckAttributes, FactoryComponent):
    """How far people and models agree: Krippendorff's alpha, Fleiss' and Cohen's kappa. None is taken to be right.

    Attributes are the arguments of `agreement_assets`, by the same names.
    """

    factory = staticmethod(agreement_assets)

    name: Annotated[str, about("Name of the asset.", "ticket_agreement")]
    key: RowKey
    target: Annotated[Any, TARGET]
    candidates: Candidates = ()
    gold: Annotated[
        Any, about("Key of the asset with labels by people, if there are any.", "ticket_ratings", kind=str | None)
    ] = None
    annotator: Annotated[
        str | None, about("Column of gold that says who has labeled. Default: one person.", "person")
    ] = None
    gold_target: GoldTarget = None
    kind: Kinds = "categorical"
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
    min_alpha: Annotated[float | None, about("As a check: least alpha of all labelers.", 0.667)] = None
    backfill_policy: BackfillPolicy = None


@dg.scaffold_with(DriftScaffolder)
@dataclass(kw_only=True)
class LLMBatchDriftComponent(TableAttributes, CheckAttributes, FactoryComponent):
    """Whether labels have shifted between partitions: PSI, Jensen-Shannon, chi-squared, and ADWIN. It takes no gold.

    Attributes are the arguments of `drift_assets`, by the same names.
    """

    factory = staticmethod(drift_assets)

    name: Annotated[str, about("Name of the asset.", "ticket_drift")]
    candidates: Candidates
    target: Columns
    reference: Annotated[
        int | str | Sequence[str],
        about(
            "What a partition is compared with: so many partitions before it, or the partitions that are named.",
            7,
            ["2026-01-01", "2026-01-02"],
            kind=int | str | list[str],
        ),
    ] = 7
    max_psi: Annotated[float, about("As a check: largest population stability index.", 0.25)] = 0.25
    online: Annotated[
        bool, about("Whether an online detector (ADWIN) looks at all partitions in turn, too. Needs the extra `drift`.")
    ] = False
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
    backfill_policy: BackfillPolicy = None


@dg.scaffold_with(SkewScaffolder)
@dataclass(kw_only=True)
class LLMBatchSkewComponent(CheckAttributes, FactoryComponent):
    """A sample of batch labels, asked again in real time and compared with what came: training-serving skew.

    Attributes are the arguments of `skew_assets`, by the same names.
    """

    factory = staticmethod(skew_assets)

    name: Annotated[str, about("Name of the asset with the figures.", "ticket_skew")]
    candidates: Annotated[Sequence[dg.AssetsDefinition], LABELS]
    target: Annotated[Any, TARGET]
    sample_size: SampleSize = 100
    seed: Seed = 0
    max_cost_usd: Annotated[
        Decimal | float | str | None,
        about("Ask nothing if one sample is estimated to cost more.", 1, kind=float | str | None),
    ] = None
    min_agreement: Annotated[float | None, about("As a check: least share of equal values.", 0.95)] = None
    realtime: Annotated[Realtime | None, REALTIME] = None
    backfill_policy: BackfillPolicy = None


@dg.scaffold_with(GoldSampleScaffolder)
@dataclass(kw_only=True)
class LLMBatchGoldSampleComponent(TableAttributes, FactoryComponent):
    """The rows most worth a human label: disagreement, low confidence, rare and growing classes; with their weights.

    Attributes are the arguments of `gold_sample_assets`, by the same names.
    """

    factory = staticmethod(gold_sample_assets)

    name: Annotated[str, about("Name of the asset.", "ticket_gold_sample")]
    candidates: Candidates
    key: RowKey
    target: Columns
    sample_size: SampleSize = 100
    gold: Annotated[
        Any, about("Key of the asset with rows that people have labeled already.", "ticket_gold", kind=str | None)
    ] = None
    rejects: Rejects = None
    confidence: Confidence = None
    random_share: Annotated[float, about("Share of them that is drawn from all rows alike; above 0.", 0.3)] = 0.3
    seed: Seed = 0
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
    backfill_policy: BackfillPolicy = None


@dg.scaffold_with(CostScaffolder)
@dataclass(kw_only=True)
class LLMBatchCostComponent(TableAttributes, FactoryComponent):
    """What each submission has cost, from the ledger, beside real time: a table, and a picture by day.

    Attributes are the arguments of `cost_assets`, by the same names.
    """

    factory = staticmethod(cost_assets)

    name: Annotated[str, about("Name of the asset.", "llm_costs")]
    candidates: Candidates = ()
    resource_key: ResourceKey = "llm_batch"


_KEYWORDS = tuple(field.name for field in dataclasses.fields(LabelingAttributes) if field.name != "backfill_policy")

AnswerColumns = Annotated[
    str | Sequence[str],
    about("Column, or columns, of the candidates with the answer.", "summary", ["topic", "why"], kind=str | list[str]),
]
AskedRows = Annotated[Any, about("Key of the asset with what candidates were asked about.", "crm/tickets", kind=str)]


@dg.scaffold_with(PairwiseJudgeScaffolder)
@dataclass(kw_only=True)
class LLMBatchPairwiseJudgeComponent(LabelingAttributes, TableAttributes, CheckAttributes, FactoryComponent):
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
    sample_size: SampleSize = 100
    seed: Seed = 0
    max_inconsistent: Annotated[
        float | None, about("As a check: largest share of rows whose verdict changes with the order.", 0.2)
    ] = None
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None


@dg.scaffold_with(RubricJudgeScaffolder)
@dataclass(kw_only=True)
class LLMBatchRubricJudgeComponent(LabelingAttributes, TableAttributes, CheckAttributes, FactoryComponent):
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
    sample_size: SampleSize = 100
    seed: Seed = 0
    min_score: Annotated[
        Mapping[str, float] | float | None,
        about(
            "As a check: least mean score, of all criteria or by criterion.", 4, kind=float | dict[str, float] | None
        ),
    ] = None
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
