"""Near copies and older labels of a cascade: the guarantee of both together. Pure.

    round 1   the model answers all rows but the near copies; the oracle a sample of them, and an audit of the copies
    round 2   the oracle answers the rows that are not above the threshold
    round 3   the oracle answers the other copies, if the audit fails; those of leaders without a label in any case

So the rows have two parts. The near copies are one part, and all other rows, with the leaders, are the other.

**The other rows** are a cascade as if there were no copies: its sample is drawn from them alone, and so its guarantee
is about them alone (thresholds.py).

**The near copies** take the final labels of their leaders, from whichever model. The audit compares these labels with
the oracle's own answers to the audited copies. So an audited copy costs one request to the oracle, and none to the
model. The audit does not compare with what the cascade would deliver for the copy: the copies are in no sample of the
cascade, so nothing is known about the labels that the threshold would accept of them.

A leader's label may be wrong already, which its copies inherit. So the two allowed shares add up: the audit allows
1 - agreement, which is the cascade's, and `error`, which is that of sharing.

*Proof.* The final labels of the leaders depend on the answers, and on the sample of the other rows. The audit draws
copies by a seed of its own, so it is independent of them. Given these labels, the wrong copies are a fixed, unknown
set, and the proof of shares.py holds: with the confidence of `Near`, at most the share 1 - agreement + `error` of the
copies have another target than the oracle's. With the cascade's confidence, at most the share 1 - agreement of the
other rows have. One of the two fails at most as often as the sum of their risks (union bound). So **with the sum of
both confidences less one, at least the share `agreement` - `error` of the labels agree with the oracle**. Against gold
it is the same with `within` + `error`: a label can only be wrong where the oracle is right if it is not the oracle's.

**Filters.** Wrong labels of all copies say little about the few that are yes, and a filter does not limit them. So the
audit of a filter tests its own share among the copies, less `error`, as for a threshold that accepts all of them: false
yes are compared with true yes for a precision, and lost yes with all yes for a recall. If both parts have a precision
(a recall), all rows have the smaller one, as its numerator and its denominator are sums. With too few yes in the audit,
the oracle answers all copies.

If the audit fails, the cheap model could still help, by a threshold of the copies' own. That would be a third draw and
a fourth round, so the oracle answers them all instead. Limits reserve the money for it.

**Older labels** after a change of the definition (relabels.py) take the place of the copies: each row has its older
label in the place of its leader's. They, too, may be wrong as often as the cascade allows, since a cascade gave most of
them, so the two allowed shares add up in the same way. The proof is the same, as these labels are fixed before the
sample.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dagster_llm_batch.core.levels import percent, promise_text
from dagster_llm_batch.core.thresholds import count_allowed_false, count_allowed_lost

if TYPE_CHECKING:
    from dagster_llm_batch.core.cascade import Cascade

__all__ = ["CascadeTerms", "joint_confidence"]

_Flags = npt.NDArray[np.bool_]
_Counts = npt.NDArray[np.int64]


def joint_confidence(confidence: float, other: float) -> float:
    """Return the confidence with which two guarantees hold together, at least: their risks add up."""
    # Exact: 0.95 + 0.95 - 1 is not 0.9 in floating point.
    return float(Fraction(str(confidence)) + Fraction(str(other)) - 1)


@dataclass(frozen=True, kw_only=True)
class CascadeTerms:
    """The guarantee of a cascade whose oracle answers an audit. Stored with the audited answers.

    Attributes:
        oracle, target, confidence: Of the cascade.
        share: Its guaranteed share: of agreement, of precision or of recall.
        within: Its guarantee against gold; None without one.
        filters: "precision" or "recall"; None: agreement.
        yes: The value that means yes, for a filter.
    """

    oracle: str
    target: str
    confidence: float
    share: float
    within: float | None = None
    filters: str | None = None
    yes: bool | int | str | None = None

    @classmethod
    def of(cls, cascade: Cascade) -> CascadeTerms:
        """Return the terms of a cascade."""
        return cls(
            oracle=cascade.oracle,
            target=cascade.target,
            confidence=cascade.confidence,
            share=cascade.least_share,
            within=cascade.within,
            filters=cascade.filters,
            yes=cascade.yes,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the arguments of this class."""
        return asdict(self)

    def least_of_audited(self, error: float) -> float:
        """Return the least share that an audit keeps. `error` is the share that it allows besides the cascade's."""
        # Exact: 0.95 - 0.02 is not 0.93 in floating point.
        return float(Fraction(str(self.share)) - Fraction(str(error)))

    def count_errors(
        self,
        labels: list[Any],
        answers: list[Any],
        shares: _Flags,
        answered: _Flags,
        drawn: _Counts,
        least: float,
        confidence: float,
    ) -> tuple[int, int] | None:
        """Return how many audited rows break a filter, and how many may; None without a filter.

        The second is -1 if zero are not enough either.

        Args:
            labels: The label of each request's leader.
            answers: The oracle's answer to the request.
            shares: Whether the request would share the label: the leader has one.
            answered: Whether the oracle has answered the request.
            drawn: The number of audited rows of the request.
            least, confidence: The guarantee of the audit.
        """
        if self.filters is None:
            return None
        called = shares & np.fromiter((label == self.yes for label in labels), bool, len(labels))
        is_yes = answered & np.fromiter((answer == self.yes for answer in answers), bool, len(answers))
        if self.filters == "precision":
            allowed = count_allowed_false(int(drawn[called & is_yes].sum()), least, confidence)
            return int(drawn[called & ~is_yes].sum()), allowed
        allowed = count_allowed_lost(int(drawn[is_yes].sum()), least, confidence)
        # As in a cascade, a row without an answer of the oracle is an error, and not a yes.
        return int(drawn[shares & ~called & (is_yes | ~answered)].sum()), allowed

    def promise_text(self, error: float, confidence: float, others: str, audited: str) -> str:
        """Return the guarantee of both in words.

        `error` and `confidence` are those of the audit, `audited` the rows that it is about, and `others` all others.
        """
        joint, least = joint_confidence(self.confidence, confidence), self.least_of_audited(error)
        within = None if self.within is None else float(Fraction(str(self.within)) + Fraction(str(error)))
        whole = promise_text(self.oracle, self.target, least, joint, within, self.filters, self.yes)
        shares = (self.share, least) if self.within is None or within is None else (self.within, within)
        return (
            f"{whole} The cascade guarantees {percent(shares[0])} for {others}, and an audit {percent(shares[1])} for "
            f"{audited}; the two risks add up."
        )

    @property
    def own_promise_text(self) -> str:
        """The guarantee in words if the cascade labels all rows."""
        return promise_text(self.oracle, self.target, self.share, self.confidence, self.within, self.filters, self.yes)
