"""The label on which several people agree, and the quality of each person's answers. Pure.

    majority       the most frequent answer for the row; a tie gives no label
    Dawid-Skene    the same if all raters of a row agree. If they differ, each counts by the quality of their answers:
                   the rate at which a rater answers `l` for a row that is `k` is estimated for all raters at once,
                   together with the rows' true classes, from their answers to all rows (expectation maximization;
                   Dawid and Skene 1979)

At least three raters are needed to find out who errs. A row gets only a label that somebody gave it, even if the model
finds another class more likely. With few answers a rater counts as mostly right (Dirichlet prior), so that somebody who
judged five rows does not count as infallible.

Written here since the library for it, crowd-kit, brings 110 MB with transformers and NLTK and takes seconds to import.
A test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LEAST_RATERS", "Agreed", "Rater", "Votes", "agreed_labels", "dawid_skene", "fast_share"]

LEAST_RATERS = 3
"""Number of raters from which on Dawid and Skene's model can find out who errs."""

MOST_CLASSES = 50
"""With more classes, the answers do not suffice to estimate a rater's confusions: the majority decides."""

_ROUNDS, _NEAR = 200, 1e-6
_PRIOR_ANSWERS, _PRIOR_RIGHT = 2.0, 0.8
"""Prior for a rater's answers on each class, before they are seen: this many answers, this share of them right."""


@dataclass(frozen=True, eq=False)
class Votes:
    """The raters' answers: for each vote, the numbers of its row, its rater and its class, all from 0."""

    rows: NDArray[np.int64]
    raters: NDArray[np.int64]
    codes: NDArray[np.int64]
    n_rows: int
    n_raters: int
    n_classes: int

    def counts(self) -> NDArray[np.int64]:
        """Return the number of raters for each class of each row."""
        import numpy as np  # noqa: PLC0415  # whoever made the arrays has it

        flat = np.bincount(self.rows * self.n_classes + self.codes, minlength=self.n_rows * self.n_classes)
        counts: NDArray[np.int64] = flat.reshape(self.n_rows, self.n_classes)
        return counts


@dataclass(frozen=True, eq=False)
class Agreed:
    """The label of each row: its class, or -1 without a vote or for a tie; and its share of the votes.

    `method` is the one that was used. `right`: for each rater, the probability of being right on a row like these, as
    the model estimates it; None by majority.
    """

    codes: NDArray[np.int64]
    share: NDArray[np.float64]
    method: Literal["majority", "dawid_skene"]
    right: NDArray[np.float64] | None


@dataclass(frozen=True)
class Rater:
    """The judgments of one person.

    - `n_labels`, `n_undecidable`: rows with an answer, and rows that they found not decidable.
    - `agreement`: share of their answers that are the agreed label, on rows that somebody else has judged too; None
      without such a row. `accuracy`: the estimate by Dawid and Skene's model; None by majority.
    - `median_seconds` from the page to the answer; `fast`: share of the answers that took less than the required time.
    """

    annotator: str
    target: str
    n_labels: int
    n_undecidable: int
    agreement: float | None
    accuracy: float | None
    median_seconds: float | None
    fast: float | None


def agreed_labels(votes: Votes, method: Literal["auto", "majority", "dawid_skene"] = "auto") -> Agreed:
    """Return one label for each row. "auto" is Dawid and Skene's from LEAST_RATERS raters on, else the majority."""
    with evaluation_extra("Gold from judgments"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    counts = votes.counts()
    total, most = counts.sum(axis=1), counts.max(axis=1, initial=0)
    leading = (counts == most[:, None]) & (counts > 0)
    codes = np.where(leading.sum(axis=1) == 1, leading.argmax(axis=1), -1)
    n_voting, right = len(np.unique(votes.raters)), None
    modeled = method == "dawid_skene" or (method == "auto" and n_voting >= LEAST_RATERS)
    # One class, or too many, leave nothing to learn.
    modeled &= 1 < votes.n_classes <= MOST_CLASSES
    if modeled:
        posterior, confusion = dawid_skene(votes)
        # Only a class that somebody voted for can be the row's label.
        likely = np.where(counts > 0, posterior, -1.0)
        best = likely.max(axis=1, initial=-1.0)
        certain = (likely >= best[:, None] - _NEAR) & (counts > 0)
        codes = np.where(certain.sum(axis=1) == 1, certain.argmax(axis=1), -1)
        of_class = posterior[total > 0].mean(axis=0) if (total > 0).any() else np.full(votes.n_classes, 0.0)
        right = np.einsum("rkk,k->r", confusion, of_class)
    voted = np.where(codes >= 0, counts[np.arange(votes.n_rows), codes], 0)
    share = np.divide(voted, total, out=np.zeros(votes.n_rows), where=total > 0)
    return Agreed(codes.astype(np.int64), share, "dawid_skene" if modeled else "majority", right)


def dawid_skene(votes: Votes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probability of each class for each row, and each rater's rate of answers by the row's class.

    Shapes: (rows, classes) and (raters, classes, classes of the answers).
    """
    import numpy as np  # noqa: PLC0415  # whoever made the arrays has it

    k, counts = votes.n_classes, votes.counts().astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    posterior = np.divide(counts, total, out=np.full_like(counts, 1 / k), where=total > 0)
    prior = np.full((k, k), _PRIOR_ANSWERS * (1 - _PRIOR_RIGHT) / (k - 1))
    np.fill_diagonal(prior, _PRIOR_ANSWERS * _PRIOR_RIGHT)
    said = votes.raters * k + votes.codes
    confusion = np.zeros((votes.n_raters, k, k))
    for _ in range(_ROUNDS):
        # By the class that a row has, by rater and by answer.
        seen = np.stack(
            [np.bincount(said, posterior[votes.rows, each], minlength=votes.n_raters * k) for each in range(k)]
        ).reshape(k, votes.n_raters, k)
        confusion = seen.transpose(1, 0, 2) + prior
        confusion /= confusion.sum(axis=2, keepdims=True)
        of_class = (posterior[total[:, 0] > 0].sum(axis=0) + 1) / ((total > 0).sum() + k)
        logs = np.log(confusion)
        likely = np.stack(
            [np.bincount(votes.rows, logs[votes.raters, each, votes.codes], votes.n_rows) for each in range(k)], axis=1
        )
        likely += np.log(of_class)
        likely = np.exp(likely - likely.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        moved = float(np.abs(likely - posterior).max(initial=0.0))
        posterior = likely
        if moved < _NEAR:
            break
    return posterior, confusion


def fast_share(seconds: Sequence[float | None], least_seconds: float) -> float | None:
    """Return the share of answers that took less than `least_seconds`; None if all times are unknown."""
    known = [each for each in seconds if each is not None]
    return sum(each < least_seconds for each in known) / len(known) if known else None
