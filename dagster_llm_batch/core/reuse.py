"""The settings of shared answers: of near copies, and of labels that stay when the definition changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.cascade import Cascade, why_incomparable
from dagster_llm_batch.core.cascade_copies import CascadeTerms, joint_confidence
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.core.thresholds import count_least, look_confidence
from dagster_llm_batch.errors import ConfigError

__all__ = ["Near", "Relabel", "Reuse"]

_LEAST_SIMILARITY = 0.5
# Below it, many different texts are similar.
_LEAST_COSINE = 0.9


@checked
@dataclass(frozen=True)
class Near:
    """Rows with nearly the same text share the answer of one of them, their leader, if an audit allows it.

    Leaders are asked first, and a random sample of the other rows, the near copies. The copies share the answers of
    their leaders only if this audit shows that at most the share `error` of them would have another answer. Otherwise
    all of them are asked in a second round. In a cascade, they share the final labels of their leaders, and the audit
    compares these with the answers of the oracle.

    Args:
        text: The column with the text. All other columns that the prompt reads, except the key, must be equal.
        target: The column of the response that is compared: a choice, an integer, a boolean or a date. In a cascade,
            the same as its target.
        similarity: Least similarity of a near copy to its leader, 0.5 to 1: the share of their different shingles that
            both texts have (Jaccard). With `vectors`: the cosine of their vectors, 0.9 to 1.
        error: Largest share of near copies whose delivered target differs from their own answer, above 0 and below 1.
            In a cascade, it is added to the share that the cascade allows.
        confidence: Least probability that a partition keeps that, above 0 and below 1.
        shingles: The parts of texts that are compared, without case: all runs of 5 characters, or of 3 words.
        sample: Number of near copies that are audited. "auto": about six times the root of their number.
        vectors: A column of the rows with a vector of each text, such as an embedding: a list of numbers. Texts are
            compared by these instead of their shingles. Rows without a vector are asked. Default: no vectors.
    """

    text: str
    target: str
    similarity: float = 0.8
    error: float = 0.02
    confidence: float = 0.95
    shingles: Literal["characters", "words"] = "characters"
    sample: int | Literal["auto"] = "auto"
    vectors: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a guarantee that is impossible for every sample."""
        if self.vectors is not None and not _LEAST_COSINE <= self.similarity <= 1:
            raise ConfigError(
                f"Near.similarity={self.similarity!r} is not allowed with vectors; it is a cosine from {_LEAST_COSINE} "
                "to 1. 0.95 is usual."
            )
        if not _LEAST_SIMILARITY <= self.similarity <= 1:
            raise ConfigError(
                f"Near.similarity={self.similarity!r} is not allowed; it is {_LEAST_SIMILARITY} to 1. 0.8 is usual."
            )
        _check_guarantee(self, "error")

    @property
    def agreement(self) -> float:
        """The least share of near copies with their own answer."""
        return _rest(self.error)

    @property
    def grouping(self) -> list[Any]:
        """Settings that decide which rows are near copies."""
        return [self.text, self.similarity, self.shingles, *([] if self.vectors is None else [self.vectors])]

    @property
    def promise(self) -> list[Any]:
        """Settings that decide which rows share an answer."""
        return [*self.grouping, self.target, self.error, self.confidence, self.sample]

    def settings(self) -> dict[str, Any]:
        """Return the arguments, as they are stored."""
        return {name: value for name, value in asdict(self).items() if name != "vectors" or value is not None}

    def check_response(self, reader: Reader) -> None:
        """Raise ConfigError for a target that the response does not have, or that cannot be compared."""
        _check_target(self, reader)

    def check_cascade(self, cascade: Cascade) -> None:
        """Raise ConfigError for a cascade whose guarantee cannot be stated together with this one."""
        _check_cascade(self, "error", cascade, "Near copies share the final labels of a cascade")

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
class Relabel:
    """After a change of prompt, model or parameters, older labels stay if a random sample allows it.

    The sample is asked first, with all rows without an older label. The other rows keep their older labels only if the
    sample shows that at most the share `share` of the older labels would be others now. Otherwise all of them are
    asked in a second round.

    Args:
        target: The column of the response that is compared: a choice, an integer, a boolean or a date.
        share: Largest share of rows with an older label whose delivered target differs from the answer that the
            present definition would give, above 0 and below 1. In a cascade, that is the oracle's answer, and the share
            is added to the one that the cascade allows.
        confidence: Least probability that a partition keeps that, above 0 and below 1.
        sample: Number of rows with an older label that are asked first. "auto": about six times the root of their
            number.
    """

    target: str
    share: float = 0.02
    confidence: float = 0.95
    sample: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        """Raise ConfigError for a guarantee that is impossible for every sample."""
        _check_guarantee(self, "share")

    @property
    def agreement(self) -> float:
        """The least share of rows whose delivered target is the one of the present definition."""
        return _rest(self.share)

    @property
    def promise(self) -> list[Any]:
        """Settings that decide which labels stay."""
        return ["relabel", self.target, self.share, self.confidence, self.sample]

    def check_response(self, reader: Reader) -> None:
        """Raise ConfigError for a target that the response does not have, or that cannot be compared."""
        _check_target(self, reader)

    def check_cascade(self, cascade: Cascade) -> None:
        """Raise ConfigError for a cascade whose guarantee cannot be stated together with this one."""
        _check_cascade(self, "share", cascade, "The oracle of a cascade decides whether older labels stay")


@checked
@dataclass(frozen=True)
class Reuse:
    """Answers that rows share, besides rows with equal requests, which always share one.

    Args:
        near: Rows with nearly the same text share an answer. Default: only rows with equal requests do.
        relabel: Older labels may stay when the prompt, the model or its parameters change. Default: then all rows are
            asked again.
    """

    near: Near | None = None
    relabel: Relabel | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for two audits at once."""
        if self.near is not None and self.relabel is not None:
            raise ConfigError(
                "Reuse(near=…, relabel=…) has both, which do not go together: a near copy could keep its older label "
                "or share its leader's, and each audit guarantees one of these alone. Leave one of them out. Take "
                "relabel for the change of a prompt. With near afterwards, leaders with an older label are asked."
            )


def _rest(share: float) -> float:
    # Exact: 1 - 0.02 is not 0.98 in floating point.
    return float(1 - Fraction(str(share)))


def _check_guarantee(settings: Near | Relabel, share: str) -> None:
    """Raise ConfigError for a guarantee that is impossible for every sample. `share` is the name of the wrong share."""
    kind = type(settings).__name__
    for name in (share, "confidence"):
        if not 0 < getattr(settings, name) < 1:
            raise ConfigError(f"{kind}.{name}={getattr(settings, name)!r} is not allowed; it is above 0 and below 1.")
    least = count_least(settings.agreement, look_confidence(settings.confidence, 1))
    if settings.sample != "auto" and settings.sample < least:
        raise ConfigError(
            f"{kind}.sample={settings.sample!r} is too small: with fewer than {least} rows no answer could be shared "
            f"at {share}={getattr(settings, share)} and confidence={settings.confidence}. Give more, or 'auto'."
        )


def _check_cascade(settings: Near | Relabel, share: str, cascade: Cascade, why: str) -> None:
    """Raise ConfigError for a cascade whose guarantee cannot be stated together with that of an audit."""
    kind, wrong = type(settings).__name__, getattr(settings, share)
    if cascade.target != settings.target:
        raise ConfigError(
            f"{kind}.target={settings.target!r} and Cascade.target={cascade.target!r} differ. {why}, so one column is "
            "compared with the oracle's: name the same in both."
        )
    if CascadeTerms.of(cascade).least_of_audited(wrong) <= 0:
        raise ConfigError(
            f"{kind}.{share}={wrong!r} leaves nothing of the cascade's share of {cascade.least_share:g}: the two "
            "allowed shares of wrong labels add up. Lower it; 0.02 is usual."
        )
    if joint_confidence(cascade.confidence, settings.confidence) <= 0:
        raise ConfigError(
            f"{kind}.confidence={settings.confidence!r} and Cascade.confidence={cascade.confidence!r} leave no "
            "confidence in both guarantees together: their risks add up. Raise one of them; 0.95 is usual."
        )


def _check_target(settings: Near | Relabel, reader: Reader) -> None:
    kind, target = type(settings).__name__, settings.target
    if target not in reader.schema.names:
        raise ConfigError(
            f"{kind}.target names the column {target!r}, which the response does not have. Columns of the "
            f"response: {', '.join(reader.schema.names)}."
        )
    if (why := why_incomparable(reader, target)) is not None:
        raise ConfigError(
            f"{kind}.target names the column {target!r}, {why}: two answers hardly ever have the same. It takes "
            "a choice (Literal, an enum), an integer, a boolean or a date."
        )
