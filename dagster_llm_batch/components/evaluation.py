"""The assets of `evaluation` in YAML: a component for each of its factories."""

from collections.abc import Sequence

import dagster as dg

from dagster_llm_batch.assets import llm_batch_assets
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.components.attributes import Form
from dagster_llm_batch.components.base import FactoryComponent, component_of
from dagster_llm_batch.components.batch import LLMBatchComponent
from dagster_llm_batch.components.resolution import import_object, pointing_at, templated
from dagster_llm_batch.components.scaffolders import (
    AgreementScaffolder,
    AnnotationScaffolder,
    CostScaffolder,
    DriftScaffolder,
    EstimateScaffolder,
    EvaluationScaffolder,
    GatheredLabelsScaffolder,
    GoldSampleScaffolder,
    PairwiseJudgeScaffolder,
    RubricJudgeScaffolder,
    SkewScaffolder,
    StudentScaffolder,
)
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation import (
    agreement_assets,
    annotation_assets,
    cost_assets,
    drift_assets,
    estimate_assets,
    evaluation_assets,
    gathered_labels,
    gold_sample_assets,
    pairwise_judge_assets,
    rubric_judge_assets,
    skew_assets,
    student_assets,
)
from dagster_llm_batch.evaluation.builder import EvaluationBuilder

__all__ = [
    "LLMBatchAgreementComponent",
    "LLMBatchAnnotationComponent",
    "LLMBatchCostComponent",
    "LLMBatchDriftComponent",
    "LLMBatchEstimateComponent",
    "LLMBatchEvaluationComponent",
    "LLMBatchGatheredLabelsComponent",
    "LLMBatchGoldSampleComponent",
    "LLMBatchPairwiseJudgeComponent",
    "LLMBatchRubricJudgeComponent",
    "LLMBatchSkewComponent",
    "LLMBatchStudentComponent",
]


def _labels(context: dg.ResolutionContext, given: str | list[dg.AssetsDefinition]) -> list[dg.AssetsDefinition]:
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


_LABELS = Form(
    str,
    ["ticket_labels", "shop.labels.ticket_labels"],
    _labels,
    "In YAML it is named by its key where this project has it in YAML, else by the import path of the definitions.",
)


@dg.scaffold_with(EvaluationScaffolder)
@component_of(evaluation_assets, EvaluationBuilder)
class LLMBatchEvaluationComponent(FactoryComponent):
    """Labels measured against gold: coverage, accuracy, F1 and kappa with intervals, and cost per correct label.

    Attributes are the arguments of `evaluation_assets`, by the same names.
    """


@dg.scaffold_with(AgreementScaffolder)
@component_of(agreement_assets, evaluation_assets, EvaluationBuilder)
class LLMBatchAgreementComponent(FactoryComponent):
    """Agreement of people and models: Krippendorff's alpha, Fleiss' and Cohen's kappa. No labeler counts as right.

    Attributes are the arguments of `agreement_assets`, by the same names.
    """


@dg.scaffold_with(AnnotationScaffolder)
@component_of(annotation_assets, evaluation_assets, EvaluationBuilder, forms={Sequence[dg.AssetsDefinition]: _LABELS})
class LLMBatchAnnotationComponent(FactoryComponent):
    """Human labels from the page of `review`, as gold: one agreed label a row, and the quality of each person.

    Attributes are the arguments of `annotation_assets`, by the same names.
    """


@dg.scaffold_with(DriftScaffolder)
@component_of(drift_assets, evaluation_assets, EvaluationBuilder)
class LLMBatchDriftComponent(FactoryComponent):
    """Detects shifts of labels between partitions: PSI, Jensen-Shannon, chi-squared, and ADWIN. It needs no gold.

    Attributes are the arguments of `drift_assets`, by the same names.
    """


@dg.scaffold_with(SkewScaffolder)
@component_of(skew_assets, EvaluationBuilder, forms={Sequence[dg.AssetsDefinition]: _LABELS})
class LLMBatchSkewComponent(FactoryComponent):
    """A sample of batch labels, asked again in real time and compared with the batch's: training-serving skew.

    Attributes are the arguments of `skew_assets`, by the same names.
    """


@dg.scaffold_with(StudentScaffolder)
@component_of(student_assets, EvaluationBuilder, forms={Sequence[dg.AssetsDefinition]: _LABELS})
class LLMBatchStudentComponent(FactoryComponent):
    """A small classifier that learns from the LLM's labels, and its labels for rows that it did not learn from.

    Attributes are the arguments of `student_assets`, by the same names.
    """


@dg.scaffold_with(GatheredLabelsScaffolder)
@component_of(gathered_labels, evaluation_assets, EvaluationBuilder, forms={Sequence[dg.AssetsDefinition]: _LABELS})
class LLMBatchGatheredLabelsComponent(FactoryComponent):
    """The labels of the parts of long texts, gathered into one row for each text, with one outcome and one price.

    Attributes are the arguments of `gathered_labels`, by the same names.
    """


@dg.scaffold_with(EstimateScaffolder)
@component_of(estimate_assets, evaluation_assets, EvaluationBuilder)
class LLMBatchEstimateComponent(FactoryComponent):
    """Shares, means and accuracy of a whole table, from few gold rows and the labels of all rows, with intervals.

    Attributes are the arguments of `estimate_assets`, by the same names.
    """


@dg.scaffold_with(GoldSampleScaffolder)
@component_of(gold_sample_assets, evaluation_assets, EvaluationBuilder)
class LLMBatchGoldSampleComponent(FactoryComponent):
    """The rows most worth a human label: disagreement, low confidence, rare and growing classes; with their weights.

    Attributes are the arguments of `gold_sample_assets`, by the same names.
    """


@dg.scaffold_with(CostScaffolder)
@component_of(cost_assets, EvaluationBuilder)
class LLMBatchCostComponent(FactoryComponent):
    """Costs of labeling, from the ledger, by asset, model, day and tag: a table, a picture, the month's forecast.

    Attributes are the arguments of `cost_assets`, by the same names.
    """


@dg.scaffold_with(PairwiseJudgeScaffolder)
@component_of(pairwise_judge_assets, EvaluationBuilder, llm_batch_assets, Labeling)
class LLMBatchPairwiseJudgeComponent(FactoryComponent):
    """Pairwise comparison of answers by an LLM, blind and in both orders: win rates with intervals.

    Attributes are the arguments of `pairwise_judge_assets`, by the same names.
    """


@dg.scaffold_with(RubricJudgeScaffolder)
@component_of(rubric_judge_assets, pairwise_judge_assets, EvaluationBuilder, llm_batch_assets, Labeling)
class LLMBatchRubricJudgeComponent(FactoryComponent):
    """An LLM scores each answer by the criteria of a rubric: mean scores with intervals.

    Attributes are the arguments of `rubric_judge_assets`, by the same names.
    """
