"""The settings of a cascade: the oracle, the target, the score, and the guarantee.

A model answers all rows, and a dearer oracle the rows where the model is unsure; see thresholds.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.response import Reader, resolve
from dagster_llm_batch.core.thresholds import count_least, look_confidence
from dagster_llm_batch.errors import ConfigError

__all__ = ["Cascade", "Precision", "Recall", "Rolling", "choices_of", "why_incomparable"]

# A permanent audit must cost less than the sample that it saves.
_MOST_AUDITED = 0.5


@checked
@dataclass(frozen=True)
class Rolling:
    """Take the threshold of a partition from rows of earlier partitions that the oracle has answered.

    It saves the sample of each partition, and has an assumption that `calibrate="partition"` does not have: a score
    means in this partition what it meant in those. So a share of all rows is audited permanently. The audit shows how
    many labels of the last 20 partitions disagree, and detects when the assumption fails. Then each partition takes its
    own sample, until there are as many rows again as `rows` asks for.

    Args:
        rows: The threshold is set by so many of the last rows that the oracle has answered; the partition's own rows
            are not among them.
        audit: The share of all rows, uniformly drawn, that the oracle answers too, above 0 and at most 0.5.
    """

    rows: int = 400
    audit: float = 0.01

    def __post_init__(self) -> None:
        """Raise ConfigError for an audit out of range."""
        if not 0 < self.audit <= _MOST_AUDITED:
            raise ConfigError(
                f"Rolling.audit={self.audit!r} is not allowed; it is a share of the rows above 0 and at most "
                f"{_MOST_AUDITED}. An audit is needed to detect that earlier partitions do not apply any more."
            )


@checked
@dataclass(frozen=True)
class Precision:
    """Guarantee the precision of a yes/no target: the share of delivered yes rows that the oracle calls yes.

    The model's no are accepted without the oracle, so yes rows may be missing. If the sample has too few yes rows, the
    oracle answers all rows: a precision of 0.95 needs 60 that both models call yes.

    Args:
        precision: The least share, above 0 and below 1.
        yes: The value of the target that means yes. Default: True, for a boolean.
    """

    precision: float
    yes: bool | int | str = True

    @property
    def share(self) -> float:
        """The least share."""
        return self.precision

    def __post_init__(self) -> None:
        """Raise ConfigError for a share that is impossible."""
        _check_share("Precision.precision", self.precision)


@checked
@dataclass(frozen=True)
class Recall:
    """Guarantee the recall of a yes/no target: the share of all rows the oracle calls yes that are delivered as yes.

    Rejected rows have no label, and are counted on neither side. The model's yes are accepted without the oracle, so
    some may be false. If the sample has too few yes rows, the oracle answers all rows: a recall of 0.9 needs 30 that
    the oracle calls yes.

    Args:
        recall: The least share, above 0 and below 1.
        yes: The value of the target that means yes. Default: True, for a boolean.
    """

    recall: float
    yes: bool | int | str = True

    @property
    def share(self) -> float:
        """The least share."""
        return self.recall

    def __post_init__(self) -> None:
        """Raise ConfigError for a share that is impossible."""
        _check_share("Recall.recall", self.recall)


def _check_share(name: str, given: float) -> None:
    if not 0 < given < 1:
        then = "all rows would be asked of the oracle: make it the model" if given == 1 else "it is a share"
        raise ConfigError(f"{name}={given!r} is not allowed; it is above 0 and below 1 ({then}).")


@checked
@dataclass(frozen=True)
class Cascade:
    """A dearer model that answers the rows where the labeling's own model is not sure enough.

    The model answers all rows, and the oracle a sample of them. When both have answered, a threshold of the score is
    set. Above it the model's labels agree with the oracle as guaranteed; the oracle answers all other rows.

    Args:
        oracle: The model whose labels count as right: the provider, a slash, and the provider's own name for it.
        target: The column of the response whose value must be the oracle's: a choice, an integer, a boolean or a date.
        agreement: Least share of the delivered labels that are the oracle's, above 0 and below 1.
        confidence: Least probability that a partition keeps that, above 0 and below 1.
        score: The column of the response with the model's certainty, a number that is larger for surer labels; or
            "llm_logprob", the model's own probability of its label, which it is asked for then. Claude, and Bedrock's
            models, do not report it.
        sample: Number of rows that the oracle answers to set the threshold. "auto": the number that makes a table of
            this size cheapest, about six times the root of its rows.
        calibrate: Source of a partition's threshold. "partition": its own sample, without assumptions. `Rolling`: rows
            of earlier partitions, for partitions that are similar windows of time.
        params: Parameters for the oracle. Default: the dataset's.
        price: Your own price of the oracle. Default: the price book's.
        gold: Human labels: an asset, by its key, or a table, with the key of the rows and the target under their names.
            With it the guarantee is against gold: see `within`. All sampled rows need a label in it.
        within: With `gold`, instead of `agreement`: the share by which the labels may be right less often than the
            oracle's own, above 0 and below 1.
        guarantee: Instead of `agreement`, for a target that is yes or no: `Precision` or `Recall`.
    """

    oracle: str
    target: str
    agreement: float = 0.95
    confidence: float = 0.95
    score: str = "confidence"
    sample: int | Literal["auto"] = "auto"
    calibrate: Literal["partition"] | Rolling = "partition"
    params: Mapping[str, Any] | None = None
    price: TokenPrice | None = None
    # Tables are neither compared nor shown.
    gold: Any = field(default=None, compare=False, repr=False)
    within: float | None = None
    guarantee: Precision | Recall | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a guarantee that is impossible for every sample."""
        self._check_gold()
        self._check_guarantee()
        for name in ("agreement", "confidence"):
            _check_share(f"Cascade.{name}", getattr(self, name))
        least = count_least(self.least_share, look_confidence(self.confidence, 1))
        if self.sample != "auto" and self.sample < least:
            asked = f"agreement={self.agreement}" if self.within is None else f"within={self.within}"
            asked = asked if self.guarantee is None else f"guarantee={self.guarantee}"
            raise ConfigError(
                f"Cascade.sample={self.sample!r} is too small: with fewer than {least} rows no label could be accepted "
                f"at {asked} and confidence={self.confidence}. Give more, or 'auto'."
            )
        least = count_least(self.least_share, self.confidence)
        if isinstance(self.calibrate, Rolling) and self.calibrate.rows < least:
            raise ConfigError(
                f"Rolling.rows={self.calibrate.rows!r} is too small: with fewer than {least} rows no label could be "
                f"accepted at agreement={self.agreement} and confidence={self.confidence}. Give more; 400 is usual."
            )
        if self.score == self.target:
            raise ConfigError(f"Cascade.score and Cascade.target both name {self.score!r}; they are two columns.")

    def _check_gold(self) -> None:
        if (self.gold is None) is not (self.within is None):
            given, lacking = ("within", "gold") if self.gold is None else ("gold", "within")
            raise ConfigError(
                f"Cascade.{given} needs Cascade.{lacking}: gold has the right labels, and within, such as 0.03, is the "
                "share by which the labels may be right less often than the oracle's. Give both, or neither."
            )
        if self.within is None:
            return
        if not 0 < self.within < 1:
            raise ConfigError(f"Cascade.within={self.within!r} is not allowed; it is a share above 0 and below 1.")
        if self.calibrate != "partition":
            raise ConfigError(
                "Cascade.calibrate=Rolling(…) and Cascade.within do not go together: people would have to label the "
                'audited rows of each partition. Compare with the oracle, or use calibrate="partition".'
            )
        if self.agreement != Cascade.agreement:
            raise ConfigError(
                f"Cascade.agreement={self.agreement!r} and Cascade.within={self.within!r} are two guarantees: the "
                "first compares with the oracle, the second with gold. Give one of them."
            )

    def _check_guarantee(self) -> None:
        if self.guarantee is None:
            return
        if self.calibrate != "partition":
            raise ConfigError(
                "Cascade.calibrate=Rolling(…) and Cascade.guarantee do not go together: its audit and its alarm count "
                'labels that disagree, which does not limit false or lost yes. Take calibrate="partition".'
            )
        if self.within is not None:
            raise ConfigError(
                f"Cascade.within={self.within!r} and Cascade.guarantee={self.guarantee!r} are two guarantees: the one "
                "is against gold, the other against the oracle. Give one of them."
            )
        if self.agreement != Cascade.agreement:
            raise ConfigError(
                f"Cascade.agreement={self.agreement!r} and Cascade.guarantee={self.guarantee!r} are two guarantees. "
                "Give one of them."
            )

    @property
    def least_share(self) -> float:
        """The guaranteed share: `agreement`, 1 minus `within`, or that of `guarantee`."""
        if self.guarantee is not None:
            return self.guarantee.share
        # Exact: 1 - 0.07 is a little less than 0.93 in floating point.
        return self.agreement if self.within is None else float(1 - Fraction(str(self.within)))

    @property
    def promise(self) -> list[Any]:
        """Settings of a cascade that decide which labels are accepted, without the two models."""
        own = [self.target, self.agreement, self.confidence, self.score, self.sample]
        if isinstance(self.calibrate, Rolling):
            return [*own, self.calibrate.rows, self.calibrate.audit]
        if self.guarantee is not None:
            return [*own, self.filters, self.guarantee.share, self.guarantee.yes]
        return own if self.within is None else [*own, self.within]

    @property
    def filters(self) -> Literal["precision", "recall"] | None:
        """The kind of `guarantee`; None for agreement."""
        return None if self.guarantee is None else "precision" if isinstance(self.guarantee, Precision) else "recall"

    @property
    def yes(self) -> bool | int | str | None:
        """The value that means yes, for a filter; None for agreement."""
        return None if self.guarantee is None else self.guarantee.yes

    def settings(self) -> dict[str, Any]:
        """Return all fields but the gold, which is not a setting of the request, and an absent `guarantee`."""
        left_out = {"gold"} if self.guarantee is not None else {"gold", "guarantee"}
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}

    def check_response(self, reader: Reader, results: pa.Schema) -> None:
        """Raise ConfigError if there is no such score among the results, or a target that cannot be compared."""
        for argument, names in (("target", reader.schema.names), ("score", results.names)):
            if getattr(self, argument) not in names:
                raise ConfigError(
                    f"Cascade.{argument} names the column {getattr(self, argument)!r}, which the response does not "
                    f"have. Columns of the response: {', '.join(names)}."
                )
        if (why := why_incomparable(reader, self.target)) is not None:
            raise ConfigError(
                f"Cascade.target names the column {self.target!r}, {why}: two models hardly ever give the same text. "
                "It takes a choice (Literal, an enum), an integer, a boolean or a date."
            )
        if self.guarantee is not None:
            self._check_yes(reader, self.guarantee.yes)
        kind = results.field(self.score).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise ConfigError(f"Cascade.score names the column {self.score!r} of type {kind}; it takes a number.")

    def _check_yes(self, reader: Reader, yes: bool | int | str) -> None:
        is_boolean = pa.types.is_boolean(reader.schema.field(self.target).type)
        values = [True, False] if is_boolean else choices_of(reader, self.target)
        both = None if values is None else list(dict.fromkeys(values))
        if both is None or len(both) != 2:  # noqa: PLR2004 - yes and no
            has = "leaves its values open" if both is None else f"has {len(both)} values"
            raise ConfigError(
                f"Cascade.guarantee={self.guarantee!r} needs a target that is yes or no; {self.target!r} {has}. Make "
                "it a boolean or a choice of two values, or use agreement."
            )
        if not any(value == yes and type(value) is type(yes) for value in both):
            raise ConfigError(
                f"Cascade.guarantee={self.guarantee!r} does not name a value of {self.target!r}. Name the one that "
                f"means yes: {type(self.guarantee).__name__}({self.least_share}, yes=…), with one of "
                f"{', '.join(map(repr, both))}."
            )


def why_incomparable(reader: Reader, target: str) -> str | None:
    """Return why values of this column are hardly ever equal; None if they can be."""
    kind = reader.schema.field(target).type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind):
        return None
    if not pa.types.is_string(kind):
        return f"of type {kind}"
    return "which is free text" if choices_of(reader, target) is None else None


def choices_of(reader: Reader, target: str) -> list[Any] | None:
    """Return the values that the schema of the response names for a column; None if it leaves them open."""
    root = reader.columns_schema or reader.format.json_schema or {}
    return _choices(root.get("properties", {}).get(target, {}), root)


def _choices(schema: Any, root: Mapping[str, Any]) -> list[Any] | None:
    if not isinstance(schema, Mapping):
        return None
    if "$ref" in schema:
        # A reference to itself has no type, so there is no column of text with one.
        return _choices(resolve(schema["$ref"], root), root)
    options = [option for word in ("anyOf", "oneOf", "allOf") for option in schema.get(word, ())]
    if options:
        of_each = [_choices(option, root) for option in options if option.get("type") != "null"]
        return None if None in of_each else [value for of in of_each for value in of or ()]
    return [*schema["enum"]] if "enum" in schema else [schema["const"]] if "const" in schema else None
