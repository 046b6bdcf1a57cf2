"""Gold from judgments in a real Dagster: people's judgments of rows become one label a row, with weights."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import dagster as dg
import polars as pl
import pytest
from code_location import DAILY, DAYS, LABELS, failure, labeled, tickets

from dagster_llm_batch import Embedding, Prompt, annotation_assets, estimate_assets, evaluation_assets
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.ledger.records import Judgment

FORM = count()
DRAWN = {"sample_weight": 2.0, "sample_round": 1, "sample_rows": 12, "sample_partition": None}


def stored_labels(ids: list[Any], topic: str = "bug", partitions_def: Any = None) -> dg.AssetsDefinition:
    """Return an asset in the place of the labels of `labeled()`."""

    @dg.asset(name=LABELS, partitions_def=partitions_def)
    def produced() -> Any:
        rows = {"ticket_id": ids, "topic": [topic] * len(ids), "urgency": [1] * len(ids)}
        return pl.DataFrame(rows).to_arrow()

    return produced


def judgment(row: Any, who: str, topic: str | None, *, at: datetime | None = None, **more: Any) -> Judgment:
    """Return a person's judgment that a row has this topic; None: that it is undecidable."""
    usual: dict[str, Any] = {
        "form_id": f"form-{next(FORM)}",
        "namespace": "default",
        "dataset": LABELS,
        "row_key": str(row),
        "annotator": who,
        "kind": "undecidable" if topic is None else "label",
        "answer": None if topic is None else {"topic": topic, "urgency": 3},
        "seconds": 2.0,
        "sample": DRAWN,
        "at": at or datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Judgment(**{**usual, **more})


def gold_of(
    location: Any, *judgments: Judgment, name: str = "gold", partition: str | None = None
) -> list[dict[str, Any]]:
    """Record judgments, make gold of them, and return its rows."""
    say(location, *judgments)
    result = location.run(name, f"{name}_raters", partition=partition)
    assert result.success, failure(result)
    return rows_of(location, name, partition)


def say(location: Any, *judgments: Judgment) -> None:
    ledger = location.engine().ledger
    for each in judgments:
        ledger.judgments.add(each)
    ledger.close()


def rows_of(location: Any, name: str = "gold", partition: str | None = None) -> list[dict[str, Any]]:
    value = location.repository.load_asset_value(dg.AssetKey(name), instance=location.instance, partition_key=partition)
    return value.to_pylist()


@pytest.fixture
def place(make: Any) -> Any:
    """Return a function that makes a code location with stored labels and gold."""

    def with_labels(ids: list[Any], *more: dg.AssetsDefinition, namespace: str = "default", **arguments: Any) -> Any:
        own = arguments.pop("partitions_def", None)
        labels = stored_labels(ids, partitions_def=own)
        gold = annotation_assets(
            name="gold",
            candidates=labeled(partitions_def=own),
            target=arguments.pop("target", "topic"),
            partitions_def=own,
            **arguments,
        )
        location = make(labels, *gold, *more, namespace=namespace)
        assert location.run(LABELS, partition=None if own is None else own.get_partition_keys()[0]).success
        return location

    return with_labels


class TestGold:
    def test_the_majority_counts_ties_and_what_cannot_be_decided_are_told_apart_and_the_sample_is_kept(self, place):
        location = place([f"t{n}" for n in range(5)], method="majority")
        rows = gold_of(
            location,
            *(judgment("t0", who, topic) for who, topic in (("ada", "bug"), ("bob", "bug"), ("eve", "how_to"))),
            *(judgment("t1", who, topic) for who, topic in (("ada", "bug"), ("bob", "how_to"))),
            *(judgment("t2", who, topic) for who, topic in (("ada", None), ("bob", None), ("eve", "bug"))),
            judgment("t3", "ada", "billing"),
            *(judgment("t4", who, topic) for who, topic in (("ada", None), ("bob", "bug"))),
        )
        assert [(row["ticket_id"], row["topic"], row["gold_outcome"], row["n_raters"]) for row in rows] == [
            ("t0", "bug", "agreed", 3),
            ("t1", None, "tied", 2),
            ("t2", None, "undecidable", 1),
            ("t3", "billing", "agreed", 1),
            ("t4", None, "tied", 1),
        ]
        assert rows[0]["agreement"] == pytest.approx(2 / 3)
        assert rows[0]["judged_seconds"] == 6
        assert all({name: row[name] for name in DRAWN} == DRAWN for row in rows)
        said = location.metadata("gold")
        assert (said["llm_batch/gold_rows"], said["llm_batch/rows_tied"], said["llm_batch/rows_undecidable"]) == (
            2,
            2,
            1,
        )
        assert said["llm_batch/method"] == "topic: majority"

    @pytest.mark.slow
    def test_from_three_people_on_one_who_errs_counts_less(self, place):
        """Let Bob and Eve give the same wrong answers to rows they guess. Only they and Ada judge the last row."""
        ids = [f"t{n}" for n in range(40)]
        location = place(ids)
        truth = ["bug", "how_to"] * 20
        wrong = {"bug": "how_to", "how_to": "bug"}
        said = [
            judgment(row, who, topic if n % 4 < right else wrong[topic])
            for n, (row, topic) in enumerate(zip(ids, truth, strict=True))
            for who, right in (("ada", 4), ("ben", 4), ("cem", 4), ("bob", 2), ("eve", 2))
            if not (n == 39 and who in ("ben", "cem"))
        ]
        rows = gold_of(location, *said)
        by_key = {row["ticket_id"]: row["topic"] for row in rows}
        # There are two against one, but the one is always right.
        assert [by_key[row] for row in ids] == truth
        assert location.metadata("gold")["llm_batch/method"] == "topic: dawid_skene"
        raters = {row["annotator"]: row for row in rows_of(location, "gold_raters")}
        assert raters["ada"]["accuracy"] > 0.9
        assert raters["eve"]["accuracy"] < 0.7
        assert raters["ada"]["agreement"] == 1

    def test_what_is_said_again_undone_or_does_not_fit_any_more_counts_as_it_stands(self, place):
        location = place(["t0", "t1", "t2"])
        rows = gold_of(
            location,
            judgment("t0", "ada", "bug"),
            judgment("t0", "ada", "billing"),
            judgment("t1", "ada", "bug"),
            judgment("t1", "ada", None, kind="undo"),
            judgment("t2", "ada", "a topic that was taken away"),
            judgment("t2", "bob", "how_to"),
        )
        assert [(row["ticket_id"], row["topic"]) for row in rows] == [("t0", "billing"), ("t2", "how_to")]
        assert location.metadata("gold")["llm_batch/answers_that_do_not_fit"] == 1

    def test_keys_and_columns_have_the_types_of_the_labels_and_fractional_numbers_their_median(self, place):
        location = place([7, 8], target=["topic", "urgency"])
        rows = gold_of(location, judgment(8, "ada", "bug"))
        assert [(row["ticket_id"], row["urgency"]) for row in rows] == [(8, 3)]

    def test_rows_that_somebody_picked_are_left_out_where_others_were_drawn(self, place):
        location = place(["t0", "t1"])
        by_hand = judgment("t1", "ada", "bug", sample=None)
        assert len(gold_of(location, by_hand)) == 1
        rows = gold_of(location, judgment("t0", "ada", "bug"))
        assert [row["ticket_id"] for row in rows] == ["t0"]
        assert location.metadata("gold")["llm_batch/rows_not_drawn"] == 1

    def test_each_partition_has_its_own(self, place):
        location = place(["t0", "t1"], partitions_def=dg.StaticPartitionsDefinition(["mon", "tue"]))
        said = [judgment("t0", "ada", "bug", partition="mon"), judgment("t0", "ada", "how_to", partition="tue")]
        assert [row["topic"] for row in gold_of(location, *said, partition="mon")] == ["bug"]

    def test_a_key_that_was_judged_in_two_partitions_is_refused_without_partitions(self, place):
        location = place(["t0", "t1"])
        say(location, *(judgment("t0", "ada", "bug", partition=day) for day in ("mon", "tue")))
        assert "partitions_def" in failure(location.run("gold"))

    def test_a_row_whose_partition_was_not_known_at_first_is_one_row_and_one_word_of_each_person(self, place):
        location = place(["t0"])
        rows = gold_of(location, judgment("t0", "ada", "bug"), judgment("t0", "ada", "how_to", partition="mon"))
        assert [(row["ticket_id"], row["topic"], row["n_raters"]) for row in rows] == [("t0", "how_to", 1)]

    def test_columns_of_somebodys_own_by_the_names_of_a_sample_are_none(self, place):
        location = place(["t0", "t1"])
        [row, other] = gold_of(
            location,
            judgment("t0", "ada", "bug", sample={"sample_weight": "heavy", "sample_round": "first"}),
            judgment("t1", "ada", "bug", sample=None),
        )
        assert (row["sample_weight"], row["sample_round"], other["sample_weight"]) == (None, None, None)

    def test_nobody_has_judged_yet(self, place):
        location = place(["t0"])
        assert gold_of(location) == []
        assert location.metadata("gold")["llm_batch/gold_rows"] == 0

    @pytest.mark.slow
    def test_evaluations_and_estimates_weight_it(self, place):
        ids = [f"t{n:02d}" for n in range(24)]
        sources = {"gold": "gold", "candidates": [LABELS], "key": "ticket_id", "target": "topic"}
        assets = [*evaluation_assets(name="eval", **sources), *estimate_assets(name="totals", **sources)]
        location = place(ids, *assets)
        # Twelve rows are drawn. Half of them are wrong, and come from a third as many rows.
        said = [
            judgment(
                row, "ada", "how_to" if n < 6 else "bug", sample={**DRAWN, "sample_rows": 24, "sample_weight": weight}
            )
            for n, row in enumerate(ids[:12])
            for weight in [1.0 if n < 6 else 3.0]
        ]
        gold_of(location, *said)
        assert location.run("eval", "totals").success
        [measured] = rows_of(location, "eval")
        assert measured["accuracy"] == pytest.approx(18 / 24)
        shares = {row["label"]: row["gold_only"] for row in rows_of(location, "totals") if row["figure"] == "share"}
        assert shares["how_to"] == pytest.approx(6 / 24)


class TestChecks:
    def test_people_who_disagree_fail_and_one_person_alone_passes(self, place):
        location = place([f"t{n}" for n in range(20)], min_alpha=0.5, min_seconds=0.1)
        say(location, *(judgment(f"t{n}", "ada", "bug" if n % 2 else "how_to") for n in range(20)))
        assert location.checks(location.run("gold"))[None, "alpha"]
        say(location, *(judgment(f"t{n}", "bob", "bug" if n % 3 else "how_to") for n in range(20)))
        assert not location.checks(location.run("gold"))[None, "alpha"]

    def test_somebody_who_answers_in_a_fraction_of_a_second_is_named(self, place):
        location = place([f"t{n}" for n in range(20)], min_seconds=0.5)
        say(location, *(judgment(f"t{n}", "ada", "bug", seconds=0.9) for n in range(20)))
        say(location, *(judgment(f"t{n}", "bob", "bug", seconds=0.2 if n < 3 else 0.9) for n in range(20)))
        # Four judgments are too few to name Eve.
        say(location, *(judgment(f"t{n}", "eve", "bug", seconds=0.1) for n in range(4)))
        result = location.run("gold")
        assert not location.checks(result)[None, "speed"]
        [words] = [
            event.asset_check_evaluation_data.description
            for event in result.all_events
            if event.event_type_value == "ASSET_CHECK_EVALUATION"
        ]
        assert "bob: 15" in words
        assert "ada" not in words
        assert "eve" not in words

    def test_nobody_judges_vectors(self):
        vectors = labeled(
            prompt=Prompt(user="{{ body }}"),
            response=Embedding(),
            endpoint="embeddings",
            model="openai/text-embedding-3-small",
            params={},
        )
        with pytest.raises(ConfigError, match="people cannot judge"):
            annotation_assets(name="gold", candidates=vectors)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"target": "mood"}, "mood"),
            ({"target": []}, "at least one"),
            ({"min_seconds": -1.0}, "min_seconds"),
            ({"min_alpha": 2.0}, "alpha is between"),
        ],
    )
    def test_what_cannot_work_is_refused_when_it_is_declared(self, arguments, words):
        with pytest.raises(ConfigError, match=words):
            annotation_assets(name="gold", candidates=labeled(), **arguments)


class TestSensor:
    def asked(self, location: Any) -> list[Any]:
        return [
            request for request in location.tick().run_requests or [] if dg.AssetKey("gold") in request.asset_selection
        ]

    @pytest.mark.slow
    def test_gold_is_asked_for_when_people_pause_once_for_each_state(self, make):
        gold = annotation_assets(name="gold", candidates=labeled(rows=lambda _: tickets()), target="topic")
        location = make(*labeled(rows=lambda _: tickets()), *gold)
        assert location.land().success
        assert not self.asked(location)
        paused = datetime.now(UTC) - timedelta(minutes=1)
        for n in range(2):
            say(location, judgment(f"t-{n}", "ada", "bug", at=paused))
            [request] = self.asked(location)
            assert {key.to_user_string() for key in request.asset_selection} == {"gold", "gold_raters"}
            assert location.launch(request).success
            assert len(rows_of(location)) == n + 1
            assert not self.asked(location)
        # After the erasure, the judgments are the same as after the first one.
        ledger = location.engine().ledger
        ledger.judgments.erase("default", LABELS, None, ["t-1"])
        ledger.close()
        [again] = self.asked(location)
        assert location.launch(again).success
        assert [row["ticket_id"] for row in rows_of(location)] == ["t-0"]
        ledger = location.engine().ledger
        ledger.judgments.erase("default", LABELS, None, ["t-0"])
        ledger.close()
        assert self.asked(location)

    def test_while_people_go_on_it_is_asked_for_after_five_minutes(self, make):
        location = make(*labeled(), *annotation_assets(name="gold", candidates=labeled(), target="topic"))
        say(location, judgment("t-0", "ada", "bug", at=datetime.now(UTC)))
        assert not self.asked(location)
        say(location, judgment("t-1", "ada", "bug", at=datetime.now(UTC) - timedelta(minutes=6)))
        assert self.asked(location)

    def test_a_partition_of_gold_is_asked_for_by_itself_and_not_where_a_person_decides(self, make):
        dataset = labeled(partitions_def=DAILY)
        gold = annotation_assets(name="gold", candidates=dataset, target="topic", partitions_def=DAILY)
        by_hand = annotation_assets(name="by_hand", candidates=dataset, target="topic", automation_condition=None)
        location = make(*dataset, *gold, *by_hand)
        say(location, judgment("t-0", "ada", "bug", partition=DAYS[3]))
        # The dataset does not have that day any more.
        say(location, judgment("t-0", "ada", "bug", partition="1999-01-01"))
        [request] = location.tick().run_requests
        assert request.partition_key == DAYS[3]
        # The labels are missing, so the run fails. It is requested again after the next judgment.
        assert not location.launch(request).success
        assert not location.tick().run_requests
