"""Labels, measured: PURE. Arrow tables in; figures, Arrow tables, markdown and PNG bytes out.

    gold + candidates ─join→ Joined ─┬─evaluate→ Evaluation, with_pareto_front ─┬─→ Arrow, markdown, PNG
      (in parts: tally, total ───▶)  ├─confusion, per_class ────────────────────┤
                                     ├─calibration_of ──────────────────────────┤
                                     ├─agreement_between (two candidates) ──────┤
                                     └─regression_between (two versions) ───────┤
    gold + all labels ─estimate→ Estimate ──────────────────────────────────────┤
    labelers ─Labels.of→ agreement_among, agreement_of_pairs ───────────────────┤
    partitions ─class_counts→ drift_between, adwin_changes ─────────────────────┘

`compare` does most of it for gold and candidates at once. This package uses no Dagster, network, disk, clock or global
randomness. Importing it needs pyarrow and numpy only. The functions that compute or draw load scipy, scikit-learn,
krippendorff and matplotlib when called (extra `evaluation`), and river (extra `drift`).
"""

from __future__ import annotations

from dagster_llm_batch.metrics.agreement import (
    LabelerAgreement,
    LabelerPair,
    Labels,
    agreement_among,
    agreement_of_pairs,
)
from dagster_llm_batch.metrics.calibration import (
    CALIBRATION_SCHEMA,
    Calibration,
    calibration_of,
    calibrations_to_arrow,
)
from dagster_llm_batch.metrics.cells import markdown_text
from dagster_llm_batch.metrics.classification import Evaluation, evaluate
from dagster_llm_batch.metrics.confusion import accuracy_png, confusion_png
from dagster_llm_batch.metrics.drift import (
    DRIFT_SCHEMA,
    SHARES_SCHEMA,
    Counts,
    Drift,
    adwin_changes,
    class_counts,
    drift_between,
    drifts_to_arrow,
    shares_to_arrow,
)
from dagster_llm_batch.metrics.estimate_plots import estimates_png
from dagster_llm_batch.metrics.estimates import ESTIMATE_SCHEMA, Estimate, estimate, estimates_to_arrow
from dagster_llm_batch.metrics.gold_sample import propose
from dagster_llm_batch.metrics.gold_signals import gold_signals
from dagster_llm_batch.metrics.joining import Joined, Target, join
from dagster_llm_batch.metrics.mcnemar import Agreement, agreement_between, pairwise_agreement
from dagster_llm_batch.metrics.numeric import pairwise_cases, rubric_cases
from dagster_llm_batch.metrics.pairwise import PAIRWISE_SCHEMA, Pairwise, compare_pairs, pairwise_to_arrow
from dagster_llm_batch.metrics.pairwise_plots import pairwise_png
from dagster_llm_batch.metrics.pareto import cost_per_1000_usd, quality, with_pareto_front
from dagster_llm_batch.metrics.per_class import PER_CLASS_SCHEMA, Confusion, confusion, per_class
from dagster_llm_batch.metrics.plots import agreement_png, pareto_png, reliability_png
from dagster_llm_batch.metrics.regression import (
    REGRESSION_SCHEMA,
    Regression,
    regression_between,
    regressions_to_arrow,
)
from dagster_llm_batch.metrics.report import EvaluationReport, compare, report_of
from dagster_llm_batch.metrics.rubric import RUBRIC_SCHEMA, RubricScore, rubric_to_arrow, score_rubric
from dagster_llm_batch.metrics.skew import SKEW_SCHEMA, Skew, side_by_side, skew_between, skew_to_arrow
from dagster_llm_batch.metrics.tables import (
    AGREEMENT_SCHEMA,
    CONFUSION_SCHEMA,
    EVALUATION_SCHEMA,
    agreements_markdown,
    agreements_to_arrow,
    confusion_markdown,
    confusions_to_arrow,
    evaluations_markdown,
    evaluations_to_arrow,
    per_class_markdown,
    table_markdown,
)
from dagster_llm_batch.metrics.tally import Tally, tally, total
from dagster_llm_batch.metrics.timeline_plots import DayCost, costs_png, drift_png
from dagster_llm_batch.text import plain_text

__all__ = [
    "AGREEMENT_SCHEMA",
    "CALIBRATION_SCHEMA",
    "CONFUSION_SCHEMA",
    "DRIFT_SCHEMA",
    "ESTIMATE_SCHEMA",
    "EVALUATION_SCHEMA",
    "PAIRWISE_SCHEMA",
    "PER_CLASS_SCHEMA",
    "REGRESSION_SCHEMA",
    "RUBRIC_SCHEMA",
    "SHARES_SCHEMA",
    "SKEW_SCHEMA",
    "Agreement",
    "Calibration",
    "Confusion",
    "Counts",
    "DayCost",
    "Drift",
    "Estimate",
    "Evaluation",
    "EvaluationReport",
    "Joined",
    "LabelerAgreement",
    "LabelerPair",
    "Labels",
    "Pairwise",
    "Regression",
    "RubricScore",
    "Skew",
    "Tally",
    "Target",
    "accuracy_png",
    "adwin_changes",
    "agreement_among",
    "agreement_between",
    "agreement_of_pairs",
    "agreement_png",
    "agreements_markdown",
    "agreements_to_arrow",
    "calibration_of",
    "calibrations_to_arrow",
    "class_counts",
    "compare",
    "compare_pairs",
    "confusion",
    "confusion_markdown",
    "confusion_png",
    "confusions_to_arrow",
    "cost_per_1000_usd",
    "costs_png",
    "drift_between",
    "drift_png",
    "drifts_to_arrow",
    "estimate",
    "estimates_png",
    "estimates_to_arrow",
    "evaluate",
    "evaluations_markdown",
    "evaluations_to_arrow",
    "gold_signals",
    "join",
    "markdown_text",
    "pairwise_agreement",
    "pairwise_cases",
    "pairwise_png",
    "pairwise_to_arrow",
    "pareto_png",
    "per_class",
    "per_class_markdown",
    "plain_text",
    "propose",
    "quality",
    "regression_between",
    "regressions_to_arrow",
    "reliability_png",
    "report_of",
    "rubric_cases",
    "rubric_to_arrow",
    "score_rubric",
    "shares_to_arrow",
    "side_by_side",
    "skew_between",
    "skew_to_arrow",
    "table_markdown",
    "tally",
    "total",
    "with_pareto_front",
]
