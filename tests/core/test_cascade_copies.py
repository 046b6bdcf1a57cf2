"""Near copies of a cascade: the test of the audit, and the guarantee of both together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy

from dagster_llm_batch.core.cascade_copies import CascadeTerms, joint_confidence
from dagster_llm_batch.core.shares import AUDITED, HELD, PAIRS, Shares
from dagster_llm_batch.core.thresholds import look_confidence

PRECISION: dict[str, Any] = {"filters": "precision", "yes": "yes"}
RECALL: dict[str, Any] = {"filters": "recall", "yes": "yes"}


def terms(**changes: Any) -> CascadeTerms:
    return CascadeTerms(**{"oracle": "a/b", "target": "topic", "confidence": 0.95, "share": 0.9, **changes})


def shares(*audited: tuple[str | None, str | None], held: str | None = "yes", **of: Any) -> Shares:
    """Return the decision on audited copies, with the labels of leaders and the oracle's answers, and on a held one."""
    labels = [*audited, (held, "unknown")]
    pairs = [
        {"llm_request_id": f"c{at}", "leader": f"l{at}", "similarity": 0.9, "rows": 1, "is_shared": False}
        | {"drawn": int(at < len(audited)), "state": AUDITED if at < len(audited) else HELD}
        for at in range(len(labels))
    ]
    known = Shares(
        pairs=pa.Table.from_pylist(pairs, schema=PAIRS),
        target="topic",
        similarity=0.8,
        error=0.1,
        confidence=0.95,
        grouping="",
        look_id="",
        look=1,
        rows=len(labels),
        sample=len(audited),
        allowed=2,
        cascade=terms(**of),
    )
    said = [(f"l{at}", label) for at, (label, _) in enumerate(labels)]
    said += [(f"c{at}", answer) for at, (_, answer) in enumerate(audited)]
    rows = [
        {"llm_request_id": one, "llm_outcome": "succeeded" if word else "errored", "topic": word} for one, word in said
    ]
    return known.decide(pa.Table.from_pylist(rows))


def is_shared(decided: Shares) -> bool:
    return bool(decided.pairs["is_shared"].to_pylist()[-1])


def test_a_copy_is_compared_with_the_oracles_own_answer() -> None:
    decided = shares(*[("yes", "yes")] * 5, ("yes", "no"), ("no", None))
    assert (decided.wrong, is_shared(decided)) == (2, True)
    assert not is_shared(shares(*[("yes", "no")] * 3))
    assert not is_shared(shares(*[("yes", "yes")] * 5, held=None)), "its leader has no label"


@pytest.mark.parametrize("of", [PRECISION, RECALL])
def test_a_filter_needs_enough_yes_in_the_audit_and_few_errors(of: dict[str, Any]) -> None:
    # The least number of yes at a share of 0.9 - 0.1
    least = next(n for n in range(100) if scipy.stats.binom.pmf(0, n, 0.2) <= 1 - look_confidence(0.95, 1))
    enough = [("yes", "yes")] * least
    assert is_shared(shares(*enough, **of))
    assert not is_shared(shares(*enough[1:], **of))
    error, harmless = (("yes", "no"), ("no", "yes")) if of is PRECISION else (("no", "yes"), ("yes", "no"))
    decided = shares(*enough, error, **of)
    assert (decided.errors, is_shared(decided)) == (1, False)
    # So many differ that an agreement would fail.
    assert is_shared(shares(*enough, *[harmless] * 50, **of))


def test_an_audited_copy_without_an_answer_is_an_error_of_a_filter_and_no_yes() -> None:
    assert shares(("yes", None), **PRECISION).errors == 1
    assert shares(("no", None), **RECALL).errors == 1
    assert shares(("no", None), **PRECISION).errors == 0
    assert shares(("yes", None), **RECALL).errors == 0


PLACES = ("the rows that are no near copies", "the copies")


def test_risks_and_allowed_errors_add_up() -> None:
    assert joint_confidence(0.95, 0.95) == 0.9
    assert terms(share=0.95).least_of_audited(0.02) == 0.93
    assert terms(share=0.95).promise_text(0.02, 0.95, *PLACES) == (
        "With a confidence of 90%, at least 93% of the labels agree with a/b on 'topic'. The cascade guarantees 95% "
        "for the rows that are no near copies, and an audit 93% for the copies; the two risks add up."
    )
    against_gold = terms(share=0.97, within=0.03).promise_text(0.02, 0.9, *PLACES)
    assert "With a confidence of 85%, the labels are right on 'topic' at most 5% of all rows less often" in against_gold
    assert (
        "The cascade guarantees 3% for the rows that are no near copies, and an audit 5% for the copies" in against_gold
    )


def test_the_stored_form_is_read_as_it_was_and_keeps_its_old_form_without_a_cascade() -> None:
    decided = shares(("yes", "yes"), **PRECISION)
    assert Shares.of_json(decided.settings_json(), decided.pairs) == decided
    plain = Shares(**{**{name: getattr(decided, name) for name in ("pairs", "target", "similarity", "error")}, **PLAIN})
    assert "cascade" not in plain.settings_json()
    assert Shares.of_json(plain.settings_json(), plain.pairs) == plain


PLAIN: dict[str, Any] = {"confidence": 0.95, "grouping": "", "look": 1, "look_id": "", "rows": 1, "sample": 1}


def test_an_audited_copy_was_asked_with_the_probability_of_the_audit_and_all_are_if_it_fails() -> None:
    passed, failed = shares(*[("yes", "yes")] * 5), shares(*[("yes", "no")] * 5)
    assert np.allclose(passed.reach.to_pylist(), 5 / 6)
    assert set(failed.reach.to_pylist()) == {1.0}
    assert passed.most_wrong == int(0.2 * 6)
    assert failed.most_wrong == 0
