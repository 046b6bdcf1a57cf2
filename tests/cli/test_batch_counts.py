"""Partitions that share a batch: commands count the provider's batches, and shards that are not sent yet."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from project import DAYS
from test_care import findings, pass_days

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.testing.emulator import rate_limited


def submit_together(project):
    """Submit as one run of `daily_labels_batch` over all partitions does: their requests fit into one batch."""
    project.change("limits=Limits(max_requests_per_batch=2), ", "")
    module = project.module()
    labeling = dataset_of(module["daily_labels"]).labeling
    with project.engine() as engine:
        ids = [
            engine.plan(labeling, module["rows"](SimpleNamespace(partition_key=day)), partition=day).submission_id
            for day in DAYS
        ]
        engine.submit_together(labeling, ids)
    return ids


@pytest.fixture
def shared(project):
    submit_together(project)
    assert len(project.emulator.books.batches) == 1
    return project


TOGETHER = "1 batch is in flight in all: several of these submissions share a batch."


def test_list_and_watch_show_one_batch_for_the_partitions_that_share_it(shared):
    listed = shared.on_file("list").stdout
    assert listed.count("1 submitted") == 3
    assert TOGETHER in listed
    assert [one["shards"] for one in shared.json("list")["submissions"]] == [{"submitted": 1}] * 3
    look = json.loads(shared.on_file("watch", "--once", "--json").stdout)
    assert TOGETHER in look["notes"]
    assert [one["shards"] for one in look["submissions"]] == [{"submitted": 1}] * 3
    assert "in all" not in shared.on_file("watch", "daily_labels", "-p", DAYS[0], "--once").stdout


def test_watch_counts_a_shared_batch_of_another_account_once(shared):
    shared.change("OpenAIBatchResource(", 'OpenAIBatchResource(organization="another", ')
    look = json.loads(shared.on_file("watch", "--once", "--poll", "--json").stdout)
    assert look["notes"][0] == "1 batch is of an account not configured here"


def test_show_tells_with_how_many_others_a_submission_shares_its_batch(shared):
    shared.submit("ticket_labels")
    told = shared.json("show", "daily_labels", "-p", DAYS[1])
    assert (told["batches"], told["batches_shared_with"]) == (1, 2)
    assert "1, shared with 2 other submissions" in shared.on_file("show", "daily_labels", "-p", DAYS[1]).stdout
    alone = shared.json("show", "ticket_labels")
    assert (alone["batches"], alone["batches_shared_with"]) == (1, 0)
    assert "shared with" not in shared.on_file("show", "ticket_labels").stdout


def test_doctor_counts_a_shared_batch_once(shared):
    assert findings(shared)["batches under way"]["said"].startswith("1 in flight")
    for day in DAYS:
        shared.on_file("cancel", "daily_labels", "-p", day, "--yes")
    assert findings(shared)["canceled batches"]["said"].startswith("1 of 1 batches were asked to stop")
    pass_days(shared, 2)
    said = findings(shared, code=3)["polling"]["said"]
    assert said.startswith("1 of 1 batches have not been polled")


def test_doctor_counts_the_shared_batch_in_which_erased_rows_are_stored_once(shared):
    shared.settle()
    keys = [argument for day in DAYS for argument in ("--key", f"{day}-0")]
    erased = shared.cli("erase", "daily_labels", *keys, "--delete", "--yes", *shared.by_address, code=4)
    assert erased.stdout.count("the providers are unknown here") == 1
    assert "providers store 1 batch with such rows" in findings(shared)["erased rows"]["said"]


def test_what_no_provider_has_taken_is_told_in_shards(project):
    project.emulator.inject(rate_limited("POST /v1/batches", times=3, retry_after=0))
    submit_together(project)
    assert project.emulator.books.batches == []
    listed = project.on_file("list").stdout
    assert (listed.count("1 shard"), listed.count("planned")) == (3, 3)
    assert "in all" not in listed
    told = project.json("show", "daily_labels", "-p", DAYS[0])
    assert (told["batches"], told["batches_shared_with"]) == (0, 0)
    [wait] = told["waits"]
    assert (wait["reason"], wait["shards"]) == ("not_sent", [told["shards"][0]["shard_id"]])
    assert wait["problem"].startswith("1 shard is not sent since")
    assert "0; 1 shard is not sent yet" in project.on_file("show", "daily_labels", "-p", DAYS[0]).stdout
    assert f"daily_labels {DAYS[0]}: 1 shard is not sent since" in project.on_file("watch", "--once").stdout
    assert ": 1 shard is not sent since" in findings(project)["unsent batches"]["said"]


def test_a_plan_of_several_partitions_says_how_many_batches_there_are_at_most(project):
    project.change("limits=Limits(max_requests_per_batch=2), ", "")
    told = project.on_file("plan", "daily_labels", "--partition-range", f"{DAYS[0]}...{DAYS[2]}").stdout
    assert "up to 3" in told
    assert "sent in one run can share batches, so there may be fewer" in told
    each = project.json("plan", "daily_labels", "--partition-range", f"{DAYS[0]}...{DAYS[2]}")["plans"]
    assert [plan["batches"] for plan in each] == [1, 1, 1]
    # Different assets do not share batches.
    apart = project.on_file("plan", "ticket_labels", "asset_labels", code=4).stdout
    assert "up to" not in apart


@pytest.mark.parametrize(
    ("urgent", "batches", "told"), [("n == 0", 1, "3 in 1 batch and in real time"), ("True", 0, "3 in real time")]
)
def test_a_plan_counts_no_batch_for_what_is_asked_in_real_time(project, urgent, batches, told):
    project.change(
        '"body": f"Where is my invoice {prefix} {n}?"}', f'"body": f"Where is {{prefix}} {{n}}?", "now": {urgent}}}'
    )
    project.change("    Prompt,\n", "    Prompt,\n    Realtime,\n")
    project.change(
        'name="ticket_labels", rows=rows,', 'name="ticket_labels", rows=rows, realtime=Realtime(urgent="now"),'
    )
    assert f"{told}, " in project.on_file("plan", "ticket_labels").stdout
    assert project.json("plan", "ticket_labels")["plans"][0]["batches"] == batches
