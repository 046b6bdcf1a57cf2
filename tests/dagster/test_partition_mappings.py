"""Partitions that differ between labels and their sources: Dagster's mappings, with a rule for every odd case."""

from typing import Any, Literal

import dagster as dg
import polars as pl
import pytest
from code_location import BATCH, LABELS, CodeLocation, failure, labeled, tickets
from pydantic import BaseModel
from test_batch_sensor import tick

from dagster_llm_batch import (
    AnthropicBatchResource,
    agreement_assets,
    drift_assets,
    evaluation_assets,
    gold_sample_assets,
    skew_assets,
)
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.io import HiveParquetIOManager
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, RowFault

DAILY = dg.DailyPartitionsDefinition("2026-01-04", end_date="2026-02-01")
WEEKLY = dg.WeeklyPartitionsDefinition("2026-01-04", end_date="2026-02-01")
LANDS = dg.StaticPartitionsDefinition(["de", "fr"])
BOTH = dg.MultiPartitionsDefinition({"day": DAILY, "land": LANDS})
WEEK = "2026-01-04"
DAYS = [f"2026-01-{day:02d}" for day in range(4, 11)]


class Made(dg.IOManager):
    """A store that has the rows of every partition."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        raise NotImplementedError

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        return self.rows(context.partition_key if context.has_partition_key else "all")


def inbox(partitions_def: Any = DAILY) -> dg.AssetSpec:
    return dg.AssetSpec("inbox", partitions_def=partitions_def).with_io_manager_key("made")


def on_inbox(**metadata: Any) -> list[dg.AssetDep]:
    return [dg.AssetDep("inbox", metadata=metadata)]


@pytest.fixture
def over(make, instance):
    """Return a function that makes a code location whose labels read an inbox with these materialized partitions."""

    def with_inbox(
        *assets: Any, days: Any = DAYS, rows: Any = lambda key: tickets(2, key), **more: Any
    ) -> CodeLocation:
        for day in days:
            instance.report_runless_asset_event(dg.AssetMaterialization("inbox", partition=day))
        return make(*assets, resources={"made": Made(rows), **more.pop("resources", {})}, **more)

    return with_inbox


def weekly(**changes: Any) -> list[dg.AssetsDefinition]:
    return labeled(**{"rows": "inbox", "partitions_def": WEEKLY, **changes})


def rows_of(location: CodeLocation, partition: str | None, name: str = LABELS) -> pl.DataFrame:
    """Return the stored labels."""
    return location.repository.load_asset_value(dg.AssetKey(name), instance=location.instance, partition_key=partition)


def snapshot(day: str) -> pl.DataFrame:
    """Return two tickets that are in every day's table, the second with a new text each day, and one of the day."""
    same = tickets(2).with_columns(body=pl.when(pl.col("ticket_id") == "t-1").then(pl.lit(day)).otherwise("body"))
    return pl.concat([same, tickets(1, day)])


@pytest.mark.slow
def test_weekly_labels_read_all_days_of_their_week_oldest_first(make, emulator, tmp_path):
    @dg.asset(partitions_def=DAILY)
    def inbox(context: dg.AssetExecutionContext) -> pl.DataFrame:
        return tickets(2, context.partition_key)

    location = make(inbox, *weekly(rows=inbox), resources={"io_manager": HiveParquetIOManager(root=str(tmp_path))})
    for day in DAYS:
        assert location.run("inbox", partition=day).success
    assert location.land(partition=WEEK).success
    assert emulator.books.creates_seen == 1
    shown = location.metadata(LABELS, WEEK)["llm_batch/preview"].records
    assert [record.data["ticket_id"] for record in shown][:3] == ["2026-01-04-0", "2026-01-04-1", "2026-01-05-0"]
    assert location.metadata(LABELS, WEEK)["dagster/partition_row_count"] == 14
    assert location.metadata(BATCH, WEEK)["llm_batch/upstream_partitions"] == 7


def test_days_that_are_not_materialized_are_refused_by_name_before_anything_is_sent(over, emulator):
    location = over(inbox(), *weekly(), days=[*DAYS[:2], *DAYS[3:6]])
    assert (
        "NoRowsError: The asset inbox is not materialized in 2 of the 7 partitions that 2026-01-04 reads: 2026-01-06, "
        "2026-01-10. Materialize it first, or leave them out: deps=[AssetDep('inbox', "
        "metadata={'allow_missing_partitions': True})]."
    ) in failure(location.submit(partition=WEEK))
    assert emulator.books.creates_seen == 0


@pytest.mark.slow
def test_days_that_are_not_materialized_are_left_out_where_that_is_allowed_and_it_is_told(over):
    location = over(inbox(), *weekly(deps=on_inbox(allow_missing_partitions=True)), days=DAYS[1:3])
    assert location.land(partition=WEEK).success
    assert sorted(rows_of(location, WEEK)["ticket_id"]) == [f"{day}-{n}" for day in DAYS[1:3] for n in range(2)]
    told = location.metadata(BATCH, WEEK)
    assert (told["llm_batch/upstream_partitions"], told["llm_batch/upstream_partitions_missing"]) == (2, 5)
    # A week without any of its days is refused, since empty rows cannot be intended.
    refused = failure(location.submit(partition="2026-01-11"))
    assert "not materialized in 7 of the 7 partitions that 2026-01-11 reads: 2026-01-11, 2026-01-12," in refused


@pytest.mark.slow
def test_a_key_of_several_days_is_refused_with_the_days_before_anything_is_sent(over, emulator):
    refused = failure(over(inbox(), *weekly(), rows=snapshot).submit(partition=WEEK))
    # A row that is the same on all days is refused, too.
    assert (
        f"The key 'ticket_id' of inbox is not unique over its partitions: 't-0' in {', '.join(DAYS)}; 't-1' in"
        in refused
    )
    assert "deps=[AssetDep('inbox', metadata={'repeated_keys': 'last'})]" in refused
    assert emulator.books.creates_seen == 0


@pytest.mark.slow
def test_of_a_key_of_several_days_the_row_of_the_last_is_taken_where_that_is_asked_for(over):
    location = over(inbox(), *weekly(deps=on_inbox(repeated_keys="last"), keep=["body"]), rows=snapshot)
    assert location.land(partition=WEEK).success
    labels = dict(rows_of(location, WEEK).select("ticket_id", "body").iter_rows())
    assert set(labels) == {"t-0", "t-1", *(f"{day}-0" for day in DAYS)}
    assert labels["t-1"] == DAYS[-1]
    assert location.metadata(BATCH, WEEK)["llm_batch/rows_repeated"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["refuse", "last"])
def test_days_without_rows_have_no_say_in_the_types_of_the_others(over, rule):
    nothing = {
        DAYS[0]: pl.DataFrame({"ticket_id": pl.Series([], dtype=pl.Null), "subject": [], "body": []}),
        DAYS[6]: [],
    }
    deps = on_inbox(repeated_keys=rule)
    location = over(inbox(), *weekly(deps=deps), rows=lambda day: nothing.get(day, tickets(2, day)))
    assert location.land(partition=WEEK).success
    assert location.metadata(LABELS, WEEK)["dagster/partition_row_count"] == 10


@pytest.mark.slow
def test_a_week_before_the_first_day_is_refused_unless_the_mapping_allows_it(over, emulator):
    weeks = dg.WeeklyPartitionsDefinition("2025-12-28", end_date="2026-02-01")
    rows = inbox(dg.DailyPartitionsDefinition("2026-01-02", end_date="2026-02-01"))
    days = ["2026-01-02", "2026-01-03"]
    refused = failure(over(rows, *weekly(partitions_def=weeks), days=days).submit(partition="2025-12-28"))
    assert (
        "2025-12-28 would read 2025-12-28, 2025-12-29, 2025-12-30, 2025-12-31, 2026-01-01, which it does not" in refused
    )
    assert emulator.books.creates_seen == 0
    allowing = dg.TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)
    location = over(rows, *weekly(partitions_def=weeks, deps=[dg.AssetDep("inbox", partition_mapping=allowing)]))
    assert location.land(partition="2025-12-28").success
    assert location.metadata(LABELS, "2025-12-28")["dagster/partition_row_count"] == 4


CASES = {
    "the days before": (
        *(DAILY, DAILY, "2026-01-06", dg.TimeWindowPartitionMapping(start_offset=-2)),
        ["2026-01-04", "2026-01-05", "2026-01-06"],
    ),
    "the week of a day": (DAILY, WEEKLY, "2026-01-06", dg.TimeWindowPartitionMapping(), [WEEK]),
    "unpartitioned rows": (WEEKLY, None, WEEK, None, [None]),
    "all partitions": (None, LANDS, None, None, ["de", "fr"]),
    "the last partition": (None, LANDS, None, dg.LastPartitionMapping(), ["fr"]),
    "one named partition": (
        LANDS,
        BOTH,
        "de",
        dg.SpecificPartitionsPartitionMapping(["2026-01-05|de"]),
        ["2026-01-05|de"],
    ),
    "one dimension of two": (BOTH, DAILY, "2026-01-05|fr", dg.MultiToSingleDimensionPartitionMapping(), [DAYS[1]]),
    "two dimensions of one": (DAILY, BOTH, "2026-01-05", None, ["2026-01-05|de", "2026-01-05|fr"]),
    "other names": (
        *(LANDS, dg.StaticPartitionsDefinition(["DE", "FR"]), "fr"),
        *(dg.StaticPartitionMapping({"DE": "de", "FR": "fr"}), ["FR"]),
    ),
    "a dimension of each": (
        *(dg.MultiPartitionsDefinition({"land": LANDS, "week": WEEKLY}), BOTH, "fr|2026-01-04"),
        dg.MultiPartitionMapping(
            {
                "day": dg.DimensionPartitionMapping("week", dg.TimeWindowPartitionMapping()),
                "land": dg.DimensionPartitionMapping("land", dg.IdentityPartitionMapping()),
            }
        ),
        [f"{day}|fr" for day in DAYS],
    ),
}


@pytest.mark.parametrize(("own", "upstream", "partition", "mapping", "read"), CASES.values(), ids=CASES)
def test_a_partition_reads_what_its_mapping_names_in_order(over, own, upstream, partition, mapping, read):
    loaded: list[str] = []

    def rows(key: str) -> pl.DataFrame:
        loaded.append(key)
        return tickets(2, key)

    deps = [dg.AssetDep("inbox", partition_mapping=mapping)]
    location = over(inbox(upstream), *labeled(rows="inbox", partitions_def=own, deps=deps), days=read, rows=rows)
    assert location.submit(partition=partition).success
    assert loaded == [key or "all" for key in read]
    assert location.metadata(BATCH, partition)["llm_batch/rows"] == 2 * len(read)


@pytest.mark.slow
def test_a_rows_function_loads_what_deps_names_by_its_mapping(over, emulator):
    @dg.asset
    def customers() -> pl.DataFrame:
        return pl.DataFrame({"ticket_id": [f"{DAYS[0]}-0", f"{DAYS[6]}-1"], "customer": ["acme", "initech"]})

    def rows(context: Any) -> Any:
        return context.load("inbox").join(context.load(customers), "ticket_id", join_type="inner")

    location = over(inbox(), customers, *weekly(rows=rows, deps=["inbox", customers], keep=["customer"]))
    assert "The asset customers is not materialized" in failure(location.submit(partition=WEEK))
    assert emulator.books.creates_seen == 0
    assert location.run("customers").success
    assert location.land(partition=WEEK).success
    assert sorted(rows_of(location, WEEK)["customer"]) == ["acme", "initech"]
    undeclared = over(inbox(), customers, *weekly(rows=rows, deps=["inbox"]))
    refused = failure(undeclared.submit(partition=WEEK))
    assert "ticket_labels_batch does not name customers among what it reads. Add deps=['customers']." in refused


@pytest.mark.parametrize(
    ("own", "upstream", "says"),
    [
        (DAILY, LANDS, "inbox has other partitions than ticket_labels_batch: 'de', 'fr' against Daily, starting"),
        (LANDS, dg.StaticPartitionsDefinition(["de"]), "fr would read fr, which it does not have"),
        (
            LANDS,
            dg.MultiPartitionsDefinition({"day": DAILY, "shop": dg.StaticPartitionsDefinition(["a"])}),
            "cannot map",
        ),
        (WEEKLY, dg.DailyPartitionsDefinition("2026-01-04", timezone="Europe/Berlin"), "Give deps=[AssetDep("),
    ],
)
def test_rows_whose_partitions_cannot_be_mapped_are_refused(over, emulator, own, upstream, says):
    # A known definition is refused at its declaration. With only its key, the run refuses it, by Dagster's own check.
    with pytest.raises(ConfigError) as refused:
        labeled(rows=inbox(upstream), partitions_def=own)
    assert says in str(refused.value)
    key = next(iter(own.get_partition_keys()))
    location = over(inbox(upstream), *labeled(rows="inbox", partitions_def=own), days=[])
    shown = failure(location.submit(partition="fr" if own is LANDS else key))
    assert "inbox has other partitions than ticket_labels_batch" in shown
    assert emulator.books.creates_seen == 0


class Topic(BaseModel):
    topic: Literal["billing", "bug", "how_to"]


VENDORS = {
    "openai/gpt-4o": lambda emulator: {},
    "anthropic/claude-haiku-4-5": lambda emulator: {
        "anthropic": AnthropicBatchResource(api_key=DEFAULT_KEY, base_url=emulator.anthropic_base_url)
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("model", VENDORS)
def test_a_week_is_submitted_polled_asked_again_and_landed_as_one_partition(over, emulator, model):
    emulator.inject(RowFault(containing=f"{DAYS[3]}-0", times=1, status_code=500))
    week_after = [f"2026-01-{day}" for day in range(11, 18)]
    days, vendor = [*DAYS, *week_after], VENDORS[model](emulator)
    location = over(inbox(), *weekly(model=model, response=Topic), days=days, **vendor)
    # Both weeks are in one run.
    assert location.submit(span=(WEEK, "2026-01-11")).success
    waves = 0
    while not location.landed() >= {WEEK, "2026-01-11"}:
        emulator.settle()
        requests = tick(location).run_requests
        assert requests
        for request in requests:
            assert location.launch(request).success
        waves += 1
    assert waves == 2
    assert sorted(rows_of(location, WEEK)["ticket_id"]) == [f"{day}-{n}" for day in DAYS for n in range(2)]
    assert location.metadata(LABELS, WEEK)["llm_batch/attempts"] == 2
    assert location.metadata(LABELS, "2026-01-11")["dagster/partition_row_count"] == 14
    # Another submission does not pay again for known answers.
    creates = emulator.books.creates_seen
    again = location.submit(partition=WEEK)
    assert location.checks(again) == {(WEEK, "sent"): True}
    assert emulator.books.creates_seen == creates


@pytest.mark.slow
def test_a_skew_check_asks_about_the_days_of_its_week(over):
    labels = weekly(response=Topic)
    location = over(inbox(), *labels, *skew_assets(name="skew", candidates=labels, target="topic", sample_size=3))
    assert location.land(partition=WEEK).success
    assert location.run("skew", "skew_sample", partition=WEEK).success
    assert location.metadata("skew_sample", WEEK)["dagster/partition_row_count"] == 3


def test_dagsters_own_check_of_definitions_refuses_what_is_named_by_key(make):
    @dg.asset(partitions_def=LANDS)
    def inbox() -> None: ...

    with pytest.raises(dg.DagsterInvalidDefinitionError, match="from ticket_labels_batch to inbox"):
        make(inbox, *weekly(rows="inbox")).repository.validate_loadable()


class TestEvaluations:
    """Reads of a week's evaluation from tables by day."""

    @pytest.fixture
    def of_tables(self, instance):
        """Return a function that runs one partition of these assets over materialized tables."""

        def run(assets: list[Any], name: str, partition: str | None, **tables: dict[str | None, pl.DataFrame]) -> Any:
            class Tables(dg.IOManager):
                def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
                    stored[context.asset_key.to_user_string()] = obj

                def load_input(self, context: dg.InputContext) -> pl.DataFrame:
                    key = context.partition_key if context.has_partition_key else None
                    return tables[context.asset_key.to_user_string()][key]

            stored: dict[str, Any] = {}
            for asset, parts in tables.items():
                for part in parts:
                    instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=part))
            defs = dg.Definitions(assets, resources={"io_manager": Tables()})
            job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey(name)})
            result = job.execute_in_process(instance=instance, partition_key=partition, raise_on_error=False)
            if not result.success:
                return failure(result)
            [event] = result.asset_materializations_for_node(name)
            return stored[name], {key: value.value for key, value in event.metadata.items()}

        return run

    @staticmethod
    def topics(*keys: str, topic: str = "bug") -> pl.DataFrame:
        return pl.DataFrame({"id": keys, "topic": [topic] * len(keys)})

    @staticmethod
    def source(name: str, partitions_def: Any) -> dg.AssetSpec:
        return dg.AssetSpec(name, partitions_def=partitions_def)

    def test_a_week_is_measured_against_all_gold_by_what_candidates_have_of_it(self, of_tables):
        gold, daily, by_week = self.source("gold", None), self.source("daily", DAILY), self.source("by_week", WEEKLY)
        evaluated = evaluation_assets(
            name="eval", gold=gold, candidates=[daily, by_week], key="id", target="topic", partitions_def=WEEKLY
        )
        table, metadata = of_tables(
            [gold, daily, by_week, *evaluated],
            *("eval", WEEK),
            gold={None: self.topics("a", "b", "c", "elsewhere")},
            daily={DAYS[0]: self.topics("a"), DAYS[2]: self.topics("b", topic="how"), "2026-01-11": self.topics("c")},
            by_week={WEEK: self.topics("a", "b", "c")},
        )
        counts = {row["candidate"]: (row["n_gold"], row["n_labeled"], row["accuracy"]) for row in table.to_pylist()}
        assert counts == {"daily": (3, 2, 0.5), "by_week": (3, 3, 1.0)}
        assert metadata["llm_batch/partitions"] == 3
        assert metadata["llm_batch/partitions_missing"] == 5
        assert metadata["llm_batch/gold_rows_elsewhere"] == 1

    def test_a_key_of_several_days_is_refused_with_the_days(self, of_tables):
        gold, daily = self.source("gold", None), self.source("daily", DAILY)
        evaluated = evaluation_assets(
            name="eval", gold=gold, candidates=daily, key="id", target="topic", partitions_def=WEEKLY
        )
        said = of_tables(
            [gold, daily, *evaluated],
            *("eval", WEEK),
            gold={None: self.topics("a")},
            daily={DAYS[0]: self.topics("a"), DAYS[2]: self.topics("b", "a")},
        )
        assert f"The key 'id' of daily is not unique over its partitions: 'a' in {DAYS[0]}, {DAYS[2]}. Keep one" in said

    def test_agreement_of_a_week_reads_its_days(self, of_tables):
        one, two = self.source("one", DAILY), self.source("two", WEEKLY)
        agreed = agreement_assets(name="agreed", candidates=[one, two], key="id", target="topic", partitions_def=WEEKLY)
        table, _ = of_tables(
            [one, two, *agreed],
            *("agreed", WEEK),
            one={DAYS[0]: self.topics("a"), DAYS[6]: self.topics("b", topic="how"), "2026-01-11": self.topics("x")},
            two={WEEK: pl.concat([self.topics("a"), self.topics("b", topic="how")])},
        )
        assert {(row["n_rows"], row["alpha"]) for row in table.to_pylist()} == {(2, 1.0)}

    def test_gold_of_a_week_is_proposed_by_what_has_changed_since_the_week_before(self, of_tables):
        daily = self.source("daily", DAILY)
        sample = gold_sample_assets(name="sample", candidates=daily, key="id", target="topic", partitions_def=WEEKLY)
        table, metadata = of_tables(
            [daily, *sample],
            *("sample", "2026-01-11"),
            daily={DAYS[0]: self.topics("a"), DAYS[6]: self.topics("b"), "2026-01-11": self.topics("c", "d")},
        )
        assert set(table["id"].to_pylist()) == {"c", "d"}
        # The day before, 2026-01-10, is not a week.
        assert [value for name, value in metadata.items() if "earlier_partition" in name] == [WEEK]

    @pytest.mark.parametrize("candidates", ["a list", "a mapping"])
    def test_partitions_that_cannot_be_mapped_are_refused(self, of_tables, candidates):
        gold, lands = self.source("gold", None), self.source("lands", LANDS)
        wrong = [lands] if candidates == "a list" else {"mine": lands}
        options = {"name": "eval", "gold": gold, "key": "id", "target": "topic", "partitions_def": WEEKLY}
        with pytest.raises(ConfigError, match="lands has other partitions than eval: 'de', 'fr' against Weekly"):
            evaluation_assets(candidates=wrong, **options)
        with pytest.raises(ConfigError, match="lands has other partitions than this asset"):
            drift_assets(name="drift", candidates=wrong, target="topic", partitions_def=WEEKLY)
        said = of_tables(
            [gold, lands, *evaluation_assets(candidates="lands", **options)],
            *("eval", WEEK),
            gold={None: self.topics("a")},
            lands={"de": self.topics("a")},
        )
        assert "lands has other partitions than eval" in said
