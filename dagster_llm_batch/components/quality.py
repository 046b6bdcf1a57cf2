"""What is watched around labels, in YAML: agreement, drift, skew, proposals for gold, costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import dagster as dg

from dagster_llm_batch.components.attributes import (
    BackfillPolicy,
    Candidates,
    Checked,
    CheckSeverity,
    Confidence,
    Following,
    GoldTarget,
    Kinds,
    Rejects,
    ResourceKey,
    RowKey,
    Seed,
    Tabled,
)
from dagster_llm_batch.components.base import FactoryComponent
from dagster_llm_batch.components.datasets import LABELS
from dagster_llm_batch.components.partitions import PARTITIONS
from dagster_llm_batch.components.resolution import about
from dagster_llm_batch.components.scaffolders import (
    AgreementScaffolder,
    CostScaffolder,
    DriftScaffolder,
    GoldSampleScaffolder,
    SkewScaffolder,
)
from dagster_llm_batch.components.settings import TARGET
from dagster_llm_batch.evaluation import (
    agreement_assets,
    cost_assets,
    drift_assets,
    gold_sample_assets,
    skew_assets,
)

__all__ = [
    "LLMBatchAgreementComponent",
    "LLMBatchCostComponent",
    "LLMBatchDriftComponent",
    "LLMBatchGoldSampleComponent",
    "LLMBatchSkewComponent",
]

Columns = Annotated[
    str | Sequence[str], about("Column, or columns, with classes.", "topic", ["topic", "urgency"], kind=str | list[str])
]


@dg.scaffold_with(AgreementScaffolder)
@dataclass(kw_only=True)
class LLMBatchAgreementComponent(Tabled, Checked, Following, FactoryComponent):
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
class LLMBatchDriftComponent(Tabled, Checked, Following, FactoryComponent):
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
    check_severity: CheckSeverity = dg.AssetCheckSeverity.WARN
    backfill_policy: BackfillPolicy = None


@dg.scaffold_with(SkewScaffolder)
@dataclass(kw_only=True)
class LLMBatchSkewComponent(Checked, FactoryComponent):
    """A sample of batch labels, asked again in real time and compared with what came: training-serving skew.

    Attributes are the arguments of `skew_assets`, by the same names.
    """

    factory = staticmethod(skew_assets)

    name: Annotated[str, about("Name of the asset with the figures.", "ticket_skew")]
    labels: Annotated[Sequence[dg.AssetsDefinition], LABELS]
    target: Annotated[Any, TARGET]
    sample: Annotated[int, about("How many labels are asked again, of each partition.", 50)] = 50
    seed: Seed = 0
    max_cost_usd: Annotated[
        Decimal | float | str | None,
        about("Ask nothing if one sample is estimated to cost more.", 1, kind=float | str | None),
    ] = None
    min_agreement: Annotated[float | None, about("As a check: least share of equal values.", 0.95)] = None
    concurrency: Annotated[int, about("How many calls run at once.", 4)] = 4
    automation_condition: Annotated[
        dg.AutomationCondition[Any] | None,
        about(
            "When to ask. Default: when a person says so, since it costs.", "{{ on_labels_ready() }}", kind=str | None
        ),
    ] = None


@dg.scaffold_with(GoldSampleScaffolder)
@dataclass(kw_only=True)
class LLMBatchGoldSampleComponent(Tabled, Following, FactoryComponent):
    """The rows most worth a human label: disagreement, low confidence, rare and growing classes; with their weights.

    Attributes are the arguments of `gold_sample_assets`, by the same names.
    """

    factory = staticmethod(gold_sample_assets)

    name: Annotated[str, about("Name of the asset.", "ticket_gold_sample")]
    candidates: Candidates
    key: RowKey
    target: Columns
    size: Annotated[int, about("How many rows are proposed, of each partition.", 100)]
    gold: Annotated[
        Any, about("Key of the asset with rows that people have labeled already.", "ticket_gold", kind=str | None)
    ] = None
    rejects: Rejects = None
    confidence: Confidence = None
    random_share: Annotated[float, about("Share of them that is drawn from all rows alike; above 0.", 0.3)] = 0.3
    seed: Seed = 0
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None


@dg.scaffold_with(CostScaffolder)
@dataclass(kw_only=True)
class LLMBatchCostComponent(Tabled, Following, FactoryComponent):
    """What each submission has cost, from the ledger, beside real time: a table, and a picture by day.

    Attributes are the arguments of `cost_assets`, by the same names.
    """

    factory = staticmethod(cost_assets)

    name: Annotated[str, about("Name of the asset.", "llm_costs")]
    labels: Annotated[
        Any,
        about(
            "Keys of the labeled assets, or a mapping from names to keys. Default: all of the namespace.",
            ["ticket_labels"],
            kind=list[str] | dict[str, str],
        ),
    ] = ()
    resource_key: ResourceKey = "llm_batch"
