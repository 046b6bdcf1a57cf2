"""Decide whether older labels stay after a change of the definition, by a random sample. Pure.

    round 1   the sampled rows with an older label, and all rows without one
    round 2   the other rows with an older label, if too many sampled labels have changed

The guarantee: **with probability `confidence`, at most the share `error` of the rows with an older label have another
target than the present definition would give them.** A sampled row gets its own answer, so only other rows can differ.

*Proof.* As for near copies (shares.py), with each row's older label in the place of its leader's answer. Both the older
labels and the answers that the present definition would give exist without the sample. So the rows that would change
are a fixed, unknown set of the N rows, and their number among the n sampled rows is hypergeometric. A sampled row
without an answer counts as changed. Each other prompt, model or setting that was tried on these rows is another look,
and all looks share 1 - `confidence`.

The upper end of the exact interval decides, since only too many changed labels break the guarantee: the labels stay if
it is at most the allowed number. Each end of the interval holds with the confidence of the look.

In a cascade, the present definition's answer is that of its oracle: see cascade_copies.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import floor
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.label_join import Labeled
from dagster_llm_batch.core.levels import OLDER, percent
from dagster_llm_batch.core.shares import REUSE, AuditedAnswers, are_good
from dagster_llm_batch.core.thresholds import find_interval

__all__ = ["OLDER_PAIRS", "Relabels", "no_older_labels", "target_text"]

_ID, _VERSION = "llm_request_id", "llm_prompt_version"

OLDER_PAIRS = pa.schema(
    [
        pa.field(_ID, pa.string()),
        pa.field("leader", pa.string()),
        pa.field("version", pa.string()),
        pa.field("older", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("drawn", pa.int64()),
        pa.field("state", pa.string()),
        pa.field("is_shared", pa.bool_()),
    ]
)
"""The stored requests with an older label: the request, and the older one that the label answers; the version of its
prompt, and its target as JSON. Then the number of its rows, and of those that the sample has drawn. Then its state, and
whether it keeps the older label.
"""

# Only within a join: the version of the prompt of an older label.
_OLDER_VERSION = pa.field("llm_older_version", pa.string())


def target_text(value: Any) -> str:
    """Return a value of a target in its stored form. Equal values have equal texts."""
    return canonical_json(value)


@dataclass(frozen=True, kw_only=True)
class Relabels(AuditedAnswers):
    """Rows of one submission with an older label, and the decision on them. See OLDER_PAIRS for the pairs.

    Attributes:
        older: The id of the submission with the older labels.
        definition: Its model, parameters and prompt, as a digest.
    """

    schema: ClassVar[pa.Schema] = OLDER_PAIRS
    columns: ClassVar[Sequence[pa.Field]] = (REUSE, _OLDER_VERSION)
    kind: ClassVar[str] = "older_labels"
    leads_elsewhere: ClassVar[bool] = True
    why: ClassVar[str] = OLDER

    older: str
    definition: str

    @cached_property
    def compared(self) -> pa.Array:
        """The requests whose results decide: the sampled ones."""
        return self.pairs.filter(pc.greater(self.pairs["drawn"], 0))[_ID].combine_chunks()

    def decide(self, results: pa.Table) -> Relabels:
        """See AuditedAnswers.decide."""
        pairs = self.pairs
        own = results.take(pc.index_in(pairs[_ID].combine_chunks(), results[_ID].combine_chunks()))
        drawn, good = pairs["drawn"].to_numpy(), are_good(own)
        values = zip(own[self.target].to_pylist(), pairs["older"].to_pylist(), drawn > 0, strict=True)
        equal = np.fromiter((is_drawn and target_text(one) == other for one, other, is_drawn in values), bool)
        has_leader = pairs["leader"].combine_chunks().is_valid().to_numpy(zero_copy_only=False).astype(bool)
        older = [json.loads(text) for text in pairs["older"].to_pylist()] if self.cascade is not None else []
        errors = self._count_errors(older, own[self.target].to_pylist(), has_leader, good, drawn)
        return self._decided(has_leader, int(drawn[~(good & equal)].sum()), **errors)

    @property
    def outcomes_besides(self) -> Mapping[str, int]:
        """See AuditedAnswers.outcomes_besides. A leader is a request of the older submission."""
        return {leader: count - 1 for leader, count in self.copies_of.items()}

    @property
    def _of_shared(self) -> Mapping[str, pa.Scalar]:
        # Neither model of the present cascade gave the label.
        return {**super()._of_shared, "llm_level": pa.scalar(OLDER)}

    def _columns_at(self, places: pa.Array) -> Sequence[pa.Array]:
        named = pc.if_else(pc.is_valid(places), pa.scalar(OLDER), pa.scalar(None, pa.string()))
        return named, self.shared["version"].combine_chunks().take(places)

    def arrange(self, labeled: Labeled) -> Labeled:
        """Return labels with `llm_reuse` at the end, and with the older version of the prompt of labels that stay."""
        arranged = super().arrange(labeled)
        labels, place = arranged.labels, arranged.labels.schema.get_field_index(_VERSION)
        versions = pc.coalesce(labels[_OLDER_VERSION.name], labels[_VERSION])
        labels = labels.set_column(place, labels.schema.field(place), versions).drop_columns([_OLDER_VERSION.name])
        return Labeled(labels, arranged.rejects, arranged.fenced)

    # words ------------------------------------------------------------------------------------------------------------

    @property
    def interval(self) -> tuple[int, int] | None:
        """The least and the greatest number of older labels that would change; None until the sample is answered."""
        if self.wrong is None or self.asks_all:
            return None
        return find_interval(self.wrong, self.sample, self.rows, self.look_confidence)

    @property
    def numbers(self) -> Mapping[str, int]:
        """See AuditedAnswers.numbers: the interval of older labels that would change."""
        if self.interval is None:
            return {}
        fewest, most = self.interval
        return {"labels_changed_min": fewest, "labels_changed_max": most}

    @property
    def promise_text(self) -> str:
        """The guarantee in words."""
        if (terms := self.cascade) is not None:
            places = ("the rows without an older label", "the others")
            return terms.own_promise_text if self.asks_all else terms.promise_text(self.error, self.confidence, *places)
        return (
            f"With a confidence of {percent(self.confidence)}, at most {percent(self.error)} of the rows with an older "
            f"label have another '{self.target}' than the present definition would give."
        )

    @property
    def plan_text(self) -> str:
        """The planned requests in words."""
        if not self.rows:
            return f"finds no row with the same content and a label in submission {self.older}: all rows are asked"
        found = f"finds {self.rows:,} rows with a label of submission {self.older}"
        if self.asks_all:
            saved = "a request" if self.cascade is None else f"requests of {self.cascade.oracle}"
            return f"{found}, too few unasked ones for a sample to save {saved}: all rows are asked"
        look = "" if self.look == 1 else f"; this is look {self.look:,} at these rows, at {self.look_confidence:.3%}"
        if self.cascade is not None:
            oracle, test = self.cascade.oracle, f"at most {self.allowed:,} of these get another '{self.target}'"
            if self.cascade.filters is not None:
                test = f"the older labels keep the {self.cascade.filters} in it"
            return (
                f"{found}. {oracle} answers a sample of {self.sample:,} of them, and the cascade labels all other "
                f"rows. If {test}, {len(self.held):,} requests are saved at both models, and their older labels stay; "
                f"otherwise {oracle} answers them all{look}"
            )
        return (
            f"{found}. It asks a sample of {self.sample:,} of them first, and all other rows. If at most "
            f"{self.allowed:,} of the sample get another '{self.target}', {len(self.held):,} requests are saved, and "
            f"their older labels stay; otherwise they are asked in a second round{look}"
        )

    @property
    def result_text(self) -> str:
        """The decision in words, as far as it is there."""
        if self.asks_all:
            return "all rows are asked"
        if self.interval is None:
            return "not decided yet: the sample answers first"
        fewest, most = self.interval
        may = "too few are left for any" if self.allowed < 0 else f"{self.allowed:,} may"
        may_change = f", and {floor((1 - Fraction(str(self.least))) * self.rows):,} may"
        if (errors := self._errors_text("sampled rows")) is not None:
            may, may_change = f"{errors}", ""
        what = (
            f"{self.wrong:,} of {self.sample:,} sampled labels change, {may}. Of all {self.rows:,} older labels, "
            f"{fewest:,} to {most:,} would change (each end at {self.look_confidence:.3%}){may_change}"
        )
        if self.passes:
            return f"{what}. {len(self.shared):,} requests keep their older labels"
        return f"{what}. {'All rows are asked' if self.cascade is None else f'{self.cascade.oracle} answers all'}"


def no_older_labels() -> Relabels:
    """Return the decision for a submission without older labels: its table has the same columns."""
    return Relabels(
        pairs=OLDER_PAIRS.empty_table(),
        target="",
        error=0,
        confidence=0,
        look=1,
        look_id="",
        rows=0,
        sample=0,
        older="",
        definition="",
    )
