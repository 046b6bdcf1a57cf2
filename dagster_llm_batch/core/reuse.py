"""The settings of shared answers: which rows are near copies, and how many of them may differ from their leader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.cascade import why_incomparable
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.core.thresholds import count_least, look_confidence
from dagster_llm_batch.errors import ConfigError

__all__ = ["Near", "Reuse"]

_LEAST_SIMILARITY = 0.5


@checked
@dataclass(frozen=True)
class Near:
    """Rows with nearly the same text share the answer of one of them, their leader, if an audit allows it.

    Leaders are asked first, and a random sample of the other rows, the near copies. The copies share the answers of
    their leaders only if this audit shows that at most the share `error` of them would have another answer. Otherwise
    all of them are asked in a second round.

    Args:
        text: The column with the text. All other columns that the prompt reads, except the key, must be equal.
        target: The column of the response that is compared: a choice, an integer, a boolean or a date.
        similarity: Least similarity of a near copy to its leader, 0.5 to 1: the share of their different shingles that
            both texts have (Jaccard).
        error: Largest share of near copies whose delivered target differs from their own answer, above 0 and below 1.
        confidence: Least probability that a partition keeps that, above 0 and below 1.
        shingles: The parts of texts that are compared, without case: all runs of 5 characters, or of 3 words.
        sample: Number of near copies that are audited. "auto": about six times the root of their number.
    """

    text: str
    target: str
    similarity: float = 0.8
    error: float = 0.02
    confidence: float = 0.95
    shingles: Literal["characters", "words"] = "characters"
    sample: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for a guarantee that is impossible for every sample."""
        if not _LEAST_SIMILARITY <= self.similarity <= 1:
            raise ConfigError(
                f"Near.similarity={self.similarity!r} is not allowed; it is {_LEAST_SIMILARITY} to 1. 0.8 is usual."
            )
        for name in ("error", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"Near.{name}={getattr(self, name)!r} is not allowed; it is above 0 and below 1.")
        least = count_least(self.agreement, look_confidence(self.confidence, 1))
        if self.sample != "auto" and self.sample < least:
            raise ConfigError(
                f"Near.sample={self.sample!r} is too small: with fewer than {least} rows no answer could be shared at "
                f"error={self.error} and confidence={self.confidence}. Give more, or 'auto'."
            )

    @property
    def agreement(self) -> float:
        """The least share of near copies with their own answer."""
        # Exact: 1 - 0.02 is not 0.98 in floating point.
        return float(1 - Fraction(str(self.error)))

    @property
    def grouping(self) -> list[Any]:
        """Settings that decide which rows are near copies."""
        return [self.text, self.similarity, self.shingles]

    @property
    def promise(self) -> list[Any]:
        """Settings that decide which rows share an answer."""
        return [*self.grouping, self.target, self.error, self.confidence, self.sample]

    def check_response(self, reader: Reader) -> None:
        """Raise ConfigError for a target that the response does not have, or that cannot be compared."""
        if self.target not in reader.schema.names:
            raise ConfigError(
                f"Near.target names the column {self.target!r}, which the response does not have. Columns of the "
                f"response: {', '.join(reader.schema.names)}."
            )
        if (why := why_incomparable(reader, self.target)) is not None:
            raise ConfigError(
                f"Near.target names the column {self.target!r}, {why}: two answers hardly ever have the same. It takes "
                "a choice (Literal, an enum), an integer, a boolean or a date."
            )

    def contexts_in(self, prompt: Prompt, key: str) -> Sequence[str]:
        """Return the columns of the prompt that must be equal. Raises ConfigError for a prompt that takes whole rows,
        or that does not read the text.
        """
        names = prompt.columns()
        if names is None:
            raise ConfigError(
                "Reuse(near=…) needs a prompt that names its columns: this one takes whole rows (`row`), so any other "
                "column could change the answer. Name the columns in the template."
            )
        if self.text not in names:
            raise ConfigError(
                f"Near.text names the column {self.text!r}, which the prompt does not read. Columns of the prompt: "
                f"{', '.join(sorted(names))}."
            )
        return sorted(names - {self.text, key})


@checked
@dataclass(frozen=True)
class Reuse:
    """Answers that rows share, besides rows with equal requests, which always share one.

    Args:
        near: Rows with nearly the same text share an answer. Default: only rows with equal requests do.
    """

    near: Near | None = None
