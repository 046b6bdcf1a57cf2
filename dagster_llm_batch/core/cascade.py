"""A cascade of two labelers: the model answers all rows, and a dearer oracle the rows where the model is unsure.

The guarantee: **with probability `confidence`, at least the share `agreement` of the delivered labels equals the
oracle's answer.** It assumes nothing about the scores, except that the sample is drawn before they exist.

Rows that the oracle answers agree with it. So only rows above a threshold t can be wrong: if their label is not the
oracle's. Their share falls as t rises. Because it is monotone, one bound holds for the threshold that the sample
chooses, without a correction for the many possible thresholds. With a sample of n rows, uniformly drawn:

    allowed     the most wrong labels k with P(Binomial(n, 1 - agreement) <= k) <= 1 - confidence
    threshold   the place of the wrong sampled row number `allowed + 1`, counted from the surest; accepted is above it

If a table is less than twenty times the sample, the probability is for drawing without replacement. Rows, not requests,
are drawn: a request that a thousand rows share is a thousand labels. A sampled row without an answer of the oracle
counts as wrong: the oracle may fail at the very rows where the model is wrong but sure. Equal scores are split by a
digest of the request, since models answer 0.9 for half of all rows.

**Against gold**, with `within`: a row is wrong if the model is wrong and the oracle right. At most by the share of
these rows, the labels are right less often than the oracle's are, so `1 - within` takes the place of `agreement`.

**Filters**, for a target that is yes or no. Rows with the oracle's label are right here, too. So a threshold changes
only the number of errors, and not the number that it is compared with:

    precision   false yes: the model's yes above the threshold that are the oracle's no, F. All true yes of the model
                are delivered as yes, T: accepted, or confirmed by the oracle. At most the share q = 1 - precision of
                F + T may be false. The model's no are accepted without a threshold, since a lost yes does not count.
    recall      lost yes: the model's no above the threshold that are the oracle's yes. At most the share q = 1 - recall
                of all yes of the oracle, T, may be lost. The model's yes are accepted without a threshold.

*Proof.* Let w be the fewest errors that are too many. T fixes it, so it is the same for each threshold. Take the w
surest errors, and with precision the T true yes, too; with recall, the other yes. Of these rows, more than q are
errors. Given that b of them are in the sample, the number k of errors in it is hypergeometric. The guarantee fails only
if k is at most the allowed number. This number is such that P(Binomial(b, q) <= allowed) <= 1 - confidence. The
hypergeometric probability is less, for each T (Uhlmann, Metrika 10, 1966): for zero errors always, and for c errors of
b rows if (q - c / (b - 1)) b >= 1 - q, which is required. With recall, b is the number of sampled yes. With precision,
b is k plus the number of sampled true yes, a, and the allowed number c of a is the largest with
P(Binomial(a + c, q) <= c) <= 1 - confidence. It grows with a, so k is at most allowed for a = b - k only if
P(Binomial(b, q) <= k) is at most 1 - confidence. In both cases it holds for each b, and so in all.

A sampled row without an answer of the oracle counts as an error, and not as a yes: either makes the threshold stricter.
If the sample has too few yes for any error, nothing is accepted: the oracle answers all rows.

**Looks.** A user who raises the sample until the oracle's share pleases has looked several times at the same rows, and
takes the most flattering look. So the looks at the same rows share `1 - confidence`: the first one has 15 of 16 parts
of it, the n-th one 1 / (n (n - 1)) of the rest, which sums to all of it for infinitely many looks (`look_confidence`).

Pure; simulated in tests/core/test_cascade.py. A threshold that is chosen so that the sample itself shows the wanted
agreement breaks such a promise in 20 to 60 of 100 cases.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from math import ceil, exp, floor, inf, isqrt, lgamma, log, log1p
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.response import Reader, resolve
from dagster_llm_batch.errors import ConfigError, InputError

__all__ = [
    "ALL",
    "NOTHING",
    "Cascade",
    "Place",
    "Precision",
    "Recall",
    "Rolling",
    "are_above",
    "are_kept",
    "choices_of",
    "choose_sample",
    "count_allowed",
    "count_allowed_before",
    "count_allowed_false",
    "count_allowed_lost",
    "count_least",
    "digest_keys",
    "digest_requests",
    "expect_accepted",
    "find_bound",
    "find_threshold",
    "look_confidence",
    "reach_probability",
    "relative_cost",
    "smallest",
]

Digests = npt.NDArray[np.uint64]
Scores = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# A table with fewer rows for each of the sample is no endless source of rows: drawing uses it up.
_FINITE = 20

# The part of the risk that the first look at rows has; later ones share the rest. Most partitions are looked at once.
_FIRST_LOOK = Fraction(15, 16)

# A permanent audit must cost less than the sample that it saves.
_MOST_AUDITED = 0.5

# The sample that costs least in simulations is the root of 40 times the rows: 200 of 1,000, 2,000 of 100,000.
_ROOTS = 40

# The share of rows that is accepted with a sample of that size, of tables of 5,000 rows, as a mean over seven kinds of
# scores. It is the complement of the column "cascade asks" of docs/truth.md, without the sample. For 1,000 rows it is
# .03 to .07 less.
_ACCEPTED = ((0.8, 0.93), (0.9, 0.69), (0.95, 0.47), (0.98, 0.26), (1.0, 0.0))


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
                'audited rows of each partition. Promise against the oracle, or take calibrate="partition".'
            )
        if self.agreement != Cascade.agreement:
            raise ConfigError(
                f"Cascade.agreement={self.agreement!r} and Cascade.within={self.within!r} are two promises: the one is "
                "against the oracle, the other against gold. Give one of them."
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
        if (why := _incomparable(reader, self.target)) is not None:
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


def _incomparable(reader: Reader, target: str) -> str | None:
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


class Place(NamedTuple):
    """A place in the order of rows from the least sure on: the score, and the digest that orders equal scores."""

    score: float
    digest: int


ALL, NOTHING = Place(-inf, 0), Place(inf, 0)
"""Two thresholds: rows with a score are always above the first, and never above the second."""


def digest_keys(keys: Iterable[Any], seed: str) -> Digests:
    """Return a practically uniform number for each key. The rows with the smallest numbers are drawn."""
    return _digests((str(key).encode("utf-8", "surrogatepass") for key in keys), f"row:{seed}")


def digest_requests(request_ids: Iterable[str], seed: str) -> Digests:
    """Return each request's number, which orders equal scores. It is independent of whether a row was drawn."""
    return _digests((request_id.encode() for request_id in request_ids), f"tie:{seed}")


def _digests(texts: Iterable[bytes], seed: str) -> Digests:
    key = hashlib.blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    whole = b"".join([hashlib.blake2b(text, key=key, digest_size=8).digest() for text in texts])
    return np.frombuffer(whole, ">u8").astype(np.uint64)


def smallest(digests: Digests, others: Digests, count: int) -> Digests:
    """Return the `count` smallest of both."""
    both = np.concatenate([digests, others])
    return both if len(both) <= count else np.partition(both, count - 1)[:count]


def look_confidence(confidence: float, look: int) -> float:
    """Return the confidence that the n-th look at the same rows needs, from 1 on, so that all of them keep the promise
    together.
    """
    share = _FIRST_LOOK if look <= 1 else (1 - _FIRST_LOOK) / (look * (look - 1))
    return 1 - (1 - confidence) * float(share)


def count_allowed(sample: int, rows: int, agreement: float, confidence: float) -> int:
    """Return how many rows of a sample may be wrong; -1: zero wrong rows are not enough either."""
    risk, wrong = 1 - confidence, _fewest_too_many(rows, agreement)
    allowed, total = -1, 0.0
    for count, probability in enumerate(_probabilities(sample, rows, wrong, 1 - agreement)):
        total += probability
        if total > risk:
            break
        allowed = count
    return allowed


def count_allowed_false(right: int, precision: float, confidence: float) -> int:
    """Return how many yes of the model above a threshold may be false in a sample; -1: zero are not enough either.

    `right` is the number of sampled rows that both call yes, with any score.
    """
    if right < 1:
        return -1
    risk, share = 1 - confidence, _exact_rest(precision)
    false, total = 0, 0.0
    while True:
        # The probability that the true one number `right` comes after so many false ones.
        choices = _log_choose(right - 1 + false, false)
        total += exp(choices + right * log1p(-share) + false * log(share))
        if total > risk or not _is_dominated(false, right + false, share):
            return false - 1
        false += 1


def count_allowed_lost(yes: int, recall: float, confidence: float) -> int:
    """Return how many yes of the oracle may be lost above a threshold in a sample; -1: zero are not enough either.

    `yes` is the number of sampled rows that the oracle calls yes.
    """
    allowed = count_allowed(yes, _FINITE * yes, recall, confidence) if yes else -1
    while allowed > 0 and not _is_dominated(allowed, yes, _exact_rest(recall)):
        allowed -= 1
    return allowed


def _exact_rest(share: float) -> float:
    return float(1 - Fraction(str(share)))


def _is_dominated(errors: int, rows: int, share: float) -> bool:
    """Return whether so few errors are at most as probable without replacement, from a table of any size."""
    return errors == 0 or (share - errors / (rows - 1)) * rows >= 1 - share


def count_allowed_before(points: int, rows: int, agreement: float, confidence: float) -> tuple[int, float]:
    """Return how many of so many earlier rows may be wrong above a threshold, and a bound of the share of the next
    ones.

    The first is -1 if zero wrong rows are not enough either. The bound is a share of `rows` next rows that is exceeded
    with the probability `1 - confidence` at most.

    If scores mean the same in both, chance decides which rows are the earlier ones. Take the first `allowed + most + 1`
    wrong rows. If at most `allowed` of these are earlier ones, more than `most` of the next ones are wrong above the
    wrong earlier row number `allowed + 1`. With so few next rows, more is required: by chance their share is far
    from the share of all.
    """

    def chance(allowed: int, most: int) -> float:
        return sum(islice(_drawn(points, points + rows, allowed + most + 1), allowed + 1))

    risk, most = 1 - confidence, _fewest_too_many(rows, agreement) - 1
    # Never more than of a table without an end: of many partitions of one row as few may be wrong.
    low, high = -1, count_allowed(points, _FINITE * points, agreement, confidence)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if chance(middle, most) <= risk else (low, middle - 1)
    if low < 0:
        return low, 0.0
    fewest = bisect_left(range(most), x=True, key=lambda wrong: chance(low, wrong) <= risk)
    return low, fewest / max(rows, 1)


def find_bound(allowed: int, sample: int, rows: int, confidence: float) -> float:
    """Return the share of disagreement that is exceeded with the probability `1 - confidence` at most.

    `count_allowed` fixes it before any answer exists; it is the requested share or slightly less.
    """
    if allowed < 0:
        return 0.0
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        chances = _probabilities(sample, rows, middle, middle / rows)
        if sum(p for p, _ in zip(chances, range(allowed + 1), strict=False)) <= 1 - confidence:
            high = middle
        else:
            low = middle + 1
    # So many wrong rows, or more, would have been found out.
    return max(low - 1, 0) / rows


def _fewest_too_many(rows: int, agreement: float) -> int:
    # Exact: 1 - 0.9 is a little less than a tenth in floating point.
    return floor((1 - Fraction(str(agreement))) * rows) + 1


def _probabilities(sample: int, rows: int, wrong: int, share: float) -> Iterable[float]:
    """Yield the probabilities that 0, 1, … of the sample are wrong, for a number, or a share, of wrong rows in all."""
    if rows < _FINITE * sample:
        return _drawn(sample, rows, min(wrong, rows))
    return _independent(sample, share)


def _independent(sample: int, share: float) -> Iterable[float]:
    for count in range(sample + 1):
        if share in (0.0, 1.0):
            yield float(count == sample * share)
            continue
        yield exp(_log_choose(sample, count) + count * log(share) + (sample - count) * log1p(-share))


def _drawn(sample: int, rows: int, wrong: int) -> Iterable[float]:
    whole = _log_choose(rows, sample)
    for count in range(sample + 1):
        if count > wrong or sample - count > rows - wrong:
            yield 0.0
            continue
        yield exp(_log_choose(wrong, count) + _log_choose(rows - wrong, sample - count) - whole)


def _log_choose(of: int, count: int) -> float:
    return lgamma(of + 1) - lgamma(count + 1) - lgamma(of - count + 1)


def count_least(agreement: float, confidence: float) -> int:
    """Return the smallest sample with which any label can be accepted, of a table of any size."""
    agreement, risk = float(agreement), 1 - float(confidence)
    # The logarithms may be off by one at either side, and counting up from 1 takes too long for agreement=0.999999999.
    about = max(1, ceil(log(risk) / log(agreement)))
    return next((n for n in range(max(1, about - 2), about + 3) if agreement**n <= risk), about + 3)


def choose_sample(rows: int, agreement: float, confidence: float, at_least: int = 1, times: float = 1.0) -> int:
    """Return how many rows of a table to sample: `rows` if a sample is useless, since it would be nearly all rows.

    `at_least` is the least that the oracle's provider takes in one batch. The sample is so many `times` the one that
    costs least as a mean over kinds of scores.
    """
    wanted = max(round(times * isqrt(_ROOTS * rows)), at_least)
    if wanted >= rows:
        return rows
    allowed = max(count_allowed(wanted, rows, agreement, confidence), 0)
    # Between two steps of the allowed number, more rows cost more and allow no more wrong ones.
    low, high = at_least, rows
    while low < high:
        middle = (low + high) // 2
        if count_allowed(middle, rows, agreement, confidence) >= allowed:
            high = middle
        else:
            low = middle + 1
    return low


def find_threshold(scores: Scores, digests: Digests, are_wrong: Flags, allowed: int) -> Place:
    """Return the place above which labels are accepted, by the sampled rows.

    A row that has no score, since its reply did not fit, is never accepted: give it -inf, and not as wrong. Raises
    InputError for a score of infinity or NaN.
    """
    _check_scores(scores)
    if allowed < 0:
        return NOTHING
    order = np.lexsort((digests, scores))[::-1]
    places = order[are_wrong[order]]
    if len(places) <= allowed:
        return ALL
    place = places[allowed]
    return Place(float(scores[place]), int(digests[place]))


def _check_scores(scores: Scores) -> None:
    # Such a row would be above any threshold, however often the model is wrong of it.
    if not (scores < inf).all():
        raise InputError(
            f"{int((~(scores < inf)).sum()):,} of {len(scores):,} scores are infinity or NaN. A score is a finite "
            "number; give rows without one -inf, and they are never accepted."
        )


def are_above(scores: Scores, digests: Digests, threshold: Place) -> Flags:
    """Return which rows are accepted. Raises InputError for a score of infinity or NaN."""
    _check_scores(scores)
    score, digest = threshold
    above: Flags = (scores > score) | ((scores == score) & (digests > np.uint64(digest)) & np.isfinite(scores))
    return above


def are_kept(scores: Scores, digests: Digests, threshold: Place, are_free: Flags) -> Flags:
    """Return which rows a filter accepts: those above the threshold, and all free ones.

    Free rows have a label of the model that cannot break the guarantee: no with precision, yes with recall. A row
    without a score, at -inf, is never accepted, and neither is any row if the threshold accepts nothing.
    """
    above = are_above(scores, digests, threshold)
    return above if threshold == NOTHING else above | (are_free & np.isfinite(scores))


def reach_probability(shared_by: int, sample: int, rows: int) -> float:
    """Return the probability that at least one of several rows, which share a request, was in the sample."""
    if shared_by > rows - sample:
        return 1.0
    return 1 - exp(_log_choose(rows - shared_by, sample) - _log_choose(rows, sample))


def expect_accepted(agreement: float) -> float:
    """Return the share of rows that a model's labels are accepted of, as a mean over kinds of scores in simulations."""
    levels, shares = zip(*_ACCEPTED, strict=True)
    return float(np.interp(agreement, levels, shares))


def relative_cost(cheap_usd: float, oracle_usd: float, sample: int, rows: int, accepted: float) -> float:
    """Return the expected cost of a cascade, as a multiple of asking the oracle alone.

    Args:
        cheap_usd, oracle_usd: Cost of a request at each.
        sample: Number of sampled rows.
        rows: Number of all rows.
        accepted: The share of rows that is accepted, from earlier partitions or as expected. Never use the share in
            the sample that sets the threshold: a choice by it would break the guarantee in 30 of 100 cases.
    """
    if oracle_usd <= 0:
        return inf
    return cheap_usd / oracle_usd + (1 - accepted) + accepted * sample / rows
