"""`plan` shows a submission's exact bytes and cents, and leaves no files."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from decimal import Decimal

import dagster as dg
import pytest
from project import DAYS

from dagster_llm_batch.advice.end_forecast import EndScore
from dagster_llm_batch.cli.plan import Planned, print_plan
from dagster_llm_batch.core.durations import EndForecast
from dagster_llm_batch.core.forecast import Learned
from dagster_llm_batch.loop.preview import Preview
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.testing.emulator import RowFault, WireFault
from dagster_llm_batch.types import PriceBasis


def test_a_plan_is_what_the_submission_becomes(project, recwarn):
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert not [one for one in recwarn if one.category is dg.SupersessionWarning]
    project.submit()
    shown = project.json("show", "ticket_labels")
    submission, [shard] = shown["submission"], shown["shards"]
    for ours, theirs in [("rows", "rows"), ("requests", "requests"), ("estimated_usd", "estimated_usd")]:
        assert plan[ours] == submission[theirs]
    assert (plan["batches"], plan["requests_to_send"], plan["request_bytes"]) == (1, 3, shard["bytes"])
    assert plan["input_tokens"] == shard["tokens"] > 0
    assert plan["output_tokens"] == 3 * 50
    assert plan["submission_id"] is None
    [known] = project.json("plan", "ticket_labels")["plans"]
    assert (known["submission_id"], known["requests_to_send"]) == (submission["submission_id"], 0)


def test_a_plan_tells_which_rows_are_empty_and_which_are_long(project):
    rows = 'return [{"ticket_id": f"{prefix}-{n}", "body": f"Where is my invoice {prefix} {n}?"} for n in range(3)]'
    messy = 'return [{"ticket_id": f"t{n}", "body": ["", "short", "long " * n][n % 3]} for n in (0, 3, 1, 2, 200_000)]'
    project.change(rows, messy)
    said = project.on_file("plan", "ticket_labels").stdout
    assert "2 of 5 rows are empty and are not sent." in said
    assert "'t200000' (about " in said
    assert "Too long for the model, which takes 128,000 tokens with its reply: the rows 't200000'" in said
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert (plan["rows"], plan["rows_empty"], plan["requests"], plan["requests_to_send"]) == (5, 2, 3, 3)
    assert plan["longest"][0]["key"] == "t200000"


def test_a_plan_tells_which_rows_have_no_image_that_can_be_read(project):
    rows = 'return [{"ticket_id": f"{prefix}-{n}", "body": f"Where is my invoice {prefix} {n}?"} for n in range(3)]'
    seen = 'return [{"ticket_id": f"t{n}", "body": ["https://example.org/a.png", "gone.png"][n % 2]} for n in range(5)]'
    project.change(rows, seen)
    project.change('user="{{ body }}")', 'user="What is it?", images=["body"])')
    said = project.on_file("plan", "ticket_labels").stdout
    assert "2 of 5 rows have a file that cannot be read or sent, and will be rejects. The first: the image" in said
    assert "got 'gone.png', which is neither bytes nor an http(s) URL" in said
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert (plan["rows"], plan["rows_empty"], plan["rows_unreadable"], plan["requests_to_send"]) == (5, 0, 2, 1)


def test_a_plan_says_where_it_would_be_sent(project):
    address = project.emulator.openai_base_url.removeprefix("http://").rstrip("/")
    assert project.json("plan", "ticket_labels")["plans"][0]["account"] == address
    assert re.search(rf"sent to +{address}\n", re.sub(r" +\n", "\n", project.on_file("plan", "ticket_labels").stdout))
    several = project.on_file("plan", "daily_labels", "-p", DAYS[0], "-p", DAYS[1]).stdout
    assert f"Sent to: openai {address}." in several


def test_of_a_name_that_the_price_book_does_not_have_the_nearest_is_named_wherever_the_price_is_missed(project):
    project.change('"openai/gpt-4o"', '"openai/gpt5-nano"')
    named = "The price book has no 'gpt5-nano'; did you mean 'gpt-5-nano'?"
    assert named in project.on_file("plan", "ticket_labels", code=1).stderr
    project.change('"max_cost_usd": 1,', "")
    assert named in project.on_file("plan", "ticket_labels").stdout
    [finding] = [one for one in project.json("doctor")["findings"] if one["check"] == "dataset ticket_labels"]
    assert named in finding["then"]
    project.change("import os\n", "import os\n\nfrom dagster_llm_batch.resources import Budget\n")
    project.change('namespace="test",', 'namespace="test", budgets=[Budget(max_usd=100)],')
    assert named in project.on_file("plan", "ticket_labels", code=1).stdout.partition("Refused: ")[2]


@pytest.mark.parametrize("before", ["nothing", "a submission"])
def test_a_plan_sends_nothing_and_leaves_nothing_behind(project, before):
    if before == "a submission":
        project.submit()
        project.submit("daily_labels", DAYS[0])
    files, calls = project.files(), len(project.emulator.books.calls)
    project.on_file("plan", "ticket_labels")
    project.on_file("plan", "daily_labels", "--partition-range", f"{DAYS[0]}...{DAYS[2]}", "--again")
    assert project.files() == files
    assert len(project.emulator.books.calls) == calls


@pytest.mark.slow
def test_a_range_of_partitions_is_summed(project):
    document = project.json("plan", "daily_labels", "--partition-range", f"{DAYS[0]}...{DAYS[2]}")
    assert [one["partition"] for one in document["plans"]] == DAYS
    assert [one["batches"] for one in document["plans"]] == [2, 2, 2]  # two requests in a batch
    text = project.on_file("plan", "daily_labels", "-p", DAYS[0], "-p", DAYS[2]).stdout
    assert "total" in text
    assert DAYS[1] not in text


def test_without_a_name_all_labeled_assets_are_planned_and_partitions_asked_for(project):
    assert "'daily_labels' has partitions; say which" in project.on_file("plan", code=2).stderr


def test_a_plan_over_its_budget_is_shown_and_refused(project):
    project.change('"max_cost_usd": 1', '"max_cost_usd": 0.0001')
    result = project.on_file("plan", "ticket_labels", code=1)
    assert "ticket_labels" in result.stdout
    assert "exceeds max_cost_usd=0.0001" in result.stdout
    assert "exceeds max_cost_usd=0.0001" in project.json("plan", "ticket_labels", code=1)["plans"][0]["refused"]


def test_a_plan_says_in_how_many_rounds_a_queue_limit_lets_its_batches_go(project):
    assert project.json("plan", "ticket_labels")["plans"][0]["queue_rounds"] == 1
    limits = "queue_limits={'openai': {'max_tokens': 80}}, "
    project.change('"llm_batch": LLMBatchResource(', f'"llm_batch": LLMBatchResource({limits}')
    said = project.on_file("plan", "ticket_labels").stdout
    assert "3 in 3 batches" in said
    assert "The queue limit of 80 tokens lets these 3 batches into the queue in 3 rounds" in said
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert (plan["batches"], plan["queue_rounds"]) == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "'nothing' is no labeled asset of the file"),
        (["nothing"], "its labeled assets: asset_labels, daily_labels, ticket_labels"),
        (["ticket_labels", "-p", "x"], "'ticket_labels' has no partitions"),
        (
            ["daily_labels", "-p", "2027-01-01"],
            "has no partition '2027-01-01'. It has 3, such as 2026-01-01, 2026-01-03.",
        ),
        (["daily_labels", "--partition-range", "2026-01-01"], "is written START...END"),
        (["daily_labels", "--partition-range", "2026-01-03...2026-01-01"], "ends before it starts"),
    ],
)
def test_a_wrong_name_or_partition_is_answered_with_what_there_is(project, arguments, said):
    assert said in project.on_file("plan", *arguments, code=2).stderr


@pytest.mark.parametrize("at_home", [True, False], ids=["home", "no home"])
def test_rows_of_an_asset_that_is_not_materialized_are_said_to_be_materialized_first(project, at_home, request):
    if at_home:
        request.getfixturevalue("home")
    said = project.on_file("plan", "asset_labels", code=4).stdout
    assert "Not planned: asset_labels: its rows are not there yet: The asset tickets is not materialized" in said
    assert "Materialize it first" in said
    assert ("DAGSTER_HOME is not set" in said) is not at_home


def test_beside_rows_that_are_not_there_yet_others_are_planned(project, home):
    said = project.json("plan", "asset_labels", "ticket_labels", code=4)
    assert [plan["asset"] for plan in said["plans"]] == ["ticket_labels"]
    [missing] = said["not_planned"]
    assert (missing["asset"], missing["partition"], missing["error"]) == ("asset_labels", None, "NoRowsError")
    # A definition that cannot work is reported before rows exist.
    project.change('"params": {"max_tokens": 50}', '"params": {"stream": True}')
    assert "'stream'" in project.on_file("plan", "asset_labels", code=1).stderr


@pytest.mark.slow
def test_rows_of_an_asset_are_those_that_it_has_stored(project, home):
    with dg.DagsterInstance.get() as instance:
        dg.materialize([project.module()["tickets"]], instance=instance)
    [plan] = project.json("plan", "asset_labels")["plans"]
    assert (plan["rows"], plan["requests_to_send"]) == (1, 1)


def test_rows_that_cannot_be_labeled_are_refused_as_by_a_submission(project):
    project.change('f"{prefix}-{n}"', '"same"')
    said = project.on_file("plan", "ticket_labels", code=1).stderr
    assert "Error: The key column 'ticket_id' has duplicate values: 'same'" in said


JUDGE = """
@dg.asset
def short() -> list:
    return [{"ticket_id": "a", "answer": "Here."}]

@dg.asset
def long() -> list:
    return [{"ticket_id": "a", "answer": "It is in the folder Invoices."}]

duel = pairwise_judge_assets(
    name="duel", rows=tickets, candidates=[short, long], key="ticket_id", target="answer", model="openai/gpt-4o",
    prompt=Prompt(user="{{ body }} A: {{ answer_a }} B: {{ answer_b }}"), params={"max_tokens": 50},
)

defs = dg.Definitions(
    assets=[tickets,"""


@pytest.mark.slow
def test_what_a_judge_asks_is_planned_retried_and_exported_like_other_labels(project, home):
    project.change("defs = dg.Definitions(\n    assets=[tickets,", f"{JUDGE} short, long, *duel,")
    project.change("    llm_batch_assets,", "    llm_batch_assets,\n    pairwise_judge_assets,")
    said = project.on_file("plan", "duel_verdicts", code=4).stdout
    assert "The asset duel_cases is not materialized" in said
    module = project.module()
    assets = [module["tickets"], module["short"], module["long"], *module["duel"]]
    resources = module["defs"].resources

    def run(*names: str) -> None:
        with dg.DagsterInstance.get() as instance:
            dg.materialize(assets, instance=instance, resources=resources, selection=[*names], raise_on_error=False)

    run("tickets", "short", "long", "duel_cases")
    [plan] = project.json("plan", "duel_verdicts")["plans"]
    assert (plan["rows"], plan["requests_to_send"]) == (2, 2)
    project.emulator.inject(RowFault(containing="Invoices", status_code=400))
    run("duel_verdicts_batch")
    project.emulator.settle()
    run("duel_verdicts", "duel_verdicts_rejects")
    project.emulator.clear_faults()
    [retried] = project.json("retry", "duel_verdicts", "--yes")["plans"]
    assert retried["requests_to_send"] == 2
    project.emulator.settle()
    run("duel_verdicts", "duel_verdicts_rejects")
    count = project.json("export", "duel_verdicts", "--what", "fine-tuning", "-o", "train.jsonl")["rows"]
    assert count == 2


@pytest.mark.slow
def test_a_dataset_with_a_translated_key_is_found_by_its_name_and_by_its_key(project):
    project.land()
    project.change(
        "daily = dg.Daily",
        """
from dagster_llm_batch import LLMBatchTranslator


class Gold(LLMBatchTranslator):
    def get_asset_spec(self, data):
        return data.spec.replace_attributes(key=data.spec.key.with_prefix("gold"))


daily = dg.Daily""",
    )
    project.change(
        'ticket_labels = llm_batch_assets(name="ticket_labels", rows',
        'ticket_labels = llm_batch_assets(translator=Gold(), name="ticket_labels", rows',
    )
    for name in ("ticket_labels", "gold/ticket_labels"):
        [plan] = project.json("plan", name)["plans"]
        assert (plan["asset"], plan["requests_to_send"]) == ("ticket_labels", 0)
        assert project.json("show", name)["submission"]["asset"] == "ticket_labels"
        assert project.on_file("export", name, "-o", "-").stdout.count("ticket_id") > 0


OF_TWO_DAYS = """
@dg.asset(partitions_def=daily)
def inbox(context: dg.AssetExecutionContext) -> list:
    return rows(context) + [{"ticket_id": "each day", "body": "Where is my invoice?"}]


two_days = dg.TimeWindowPartitionMapping(start_offset=-1)
in_two_days = llm_batch_assets(
    name="in_two_days",
    rows="inbox",
    partitions_def=daily,
    deps=[dg.AssetDep("inbox", partition_mapping=two_days, metadata={})],
    **common,
)
here = """


@pytest.mark.slow
def test_of_partitions_that_differ_a_plan_says_what_the_run_would(project, home):
    project.change("assets=[tickets,", "assets=[tickets, inbox, *in_two_days,")
    project.change("\nhere = ", OF_TWO_DAYS)

    def planned(code=1):
        return project.on_file("plan", "in_two_days", "-p", DAYS[1], code=code)

    with dg.DagsterInstance.get() as instance:

        def refused():
            result = (
                project.module()["defs"]
                .resolve_implicit_global_asset_job_def()
                .execute_in_process(
                    instance=instance,
                    partition_key=DAYS[1],
                    asset_selection=[dg.AssetKey("in_two_days_batch")],
                    raise_on_error=False,
                )
            )
            [failed] = [event for event in result.all_node_events if event.is_step_failure]
            return failed.step_failure_data.user_failure_data.description

        dg.materialize([project.module()["inbox"]], instance=instance, partition_key=DAYS[1])
        said = refused()
        assert "The asset inbox is not materialized in 1 of the 2 partitions that 2026-01-02 reads: 2026-01-01." in said
        assert said.removeprefix("NoRowsError: ") in planned(4).stdout
        dg.materialize([project.module()["inbox"]], instance=instance, partition_key=DAYS[0])
        said = refused()
        assert (
            "The key 'ticket_id' of inbox is not unique over its partitions: 'each day' in 2026-01-01, 2026-01-0"
            in said
        )
        assert said.partition(": ")[2] in planned().stderr
    project.change("metadata={}", 'metadata={"repeated_keys": "last"}')
    told = [
        "inbox: read 2026-01-01, 2026-01-02.",
        "inbox: left out 1 rows whose ticket_id a later partition has.",
    ]
    [plan] = project.json("plan", "in_two_days", "-p", DAYS[1])["plans"]
    assert (plan["rows"], plan["notes"]) == (7, told)
    assert all(one in planned(0).stdout for one in told)


@pytest.mark.slow
def test_a_rows_function_that_loads_what_is_upstream_is_planned_as_it_runs(project, home):
    function = "def rows(context):\n    prefix = "
    project.change(function, "def joined(context):\n    return context.load('tickets')\n\n\n" + function)
    project.change('name="asset_labels", rows=tickets,', 'name="asset_labels", rows=joined, deps=["tickets"],')
    assert "The asset tickets is not materialized" in project.on_file("plan", "asset_labels", code=4).stdout
    with dg.DagsterInstance.get() as instance:
        dg.materialize([project.module()["tickets"]], instance=instance)
    [plan] = project.json("plan", "asset_labels")["plans"]
    assert (plan["rows"], plan["requests_to_send"]) == (1, 1)


@pytest.mark.parametrize(
    ("learned", "basis", "from_json"),
    [
        (None, "calibrated rates", (None, 0, 0)),
        (Learned(2, 1.1, 30.0), "learned from 2 earlier submissions", (2, 0, 0)),
        (
            Learned(9, 1.1, 30.0, low=0.9, high=1.2, judged=6, held=5),
            "learned from 9 earlier submissions; 5 of 6 such intervals held",
            (9, 6, 5),
        ),
        (
            Learned(4, 1.1),
            "calibrated rates, input learned from 4 earlier submissions that asked otherwise",
            (None, 0, 0),
        ),
    ],
)
def test_a_plan_says_what_its_estimate_rests_on(capsys, learned, basis, from_json):
    figures = {"rows": 9, "skipped": 0, "erased_rows": 0, "requests": 9, "reused": 0, "shards": ()}
    costs = {name: Decimal(amount) for name, amount in (("estimated_usd", 2), ("p05_usd", 1), ("p95_usd", 3))}
    preview = Preview(
        **figures,
        **costs,
        input_tokens=9,
        output_tokens=9,
        realtime_usd=None,
        price_basis=PriceBasis.BATCH,
        learned=learned,
    )
    day = timedelta(days=1)
    plan = Planned("labels", None, "openai/gpt-4o", "api.openai.com", None, preview, day, EndScore())
    assert tuple(plan.document[name] for name in ("learned_from", "estimates_judged", "estimates_held")) == from_json
    print_plan([plan])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"estimate from {basis}" in printed
    assert "19 of 20 above $1.00 19 of 20 below $3.00" in printed
    assert "in real time unknown" in printed
    assert not [line for line in ("partition", "ends", "tuned", "known as") if line in printed]


@pytest.mark.parametrize(
    ("change", "basis"),
    [
        ("", "calibrated rates, output taken as your maximum of 50 tokens a row"),
        ('"spend": Spend(expected_output_tokens=7), ', "calibrated rates, output taken as 7 tokens a row, as Spend("),
    ],
)
def test_an_estimate_says_what_its_output_is_taken_from(project, change, basis):
    project.change("    Prompt,", "    Prompt,\n    Spend,")
    project.change('"params": {"max_tokens": 50}', f'{change}"params": {{"max_tokens": 50}}')
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert plan["estimate_basis"].startswith(basis)
    assert basis in " ".join(project.on_file("plan", "ticket_labels").stdout.split())


def test_a_plan_says_how_long_its_steps_may_take(project):
    project.change("    Prompt,", "    Prompt,\n    Spend,")
    project.change('"max_cost_usd": 1', '"max_cost_usd": 0.004')
    project.change('{"max_tokens": 50}', '{"max_tokens": 300}, "spend": Spend(expected_output_tokens=1, limit="hard")')
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert plan["limit_steps"] > 1
    assert plan["limit_steps_seconds_at_most"] == plan["limit_steps"] * 86_400
    said = project.on_file("plan", "ticket_labels").stdout
    assert f"all of it may take up to {plan['limit_steps']} days." in said
    assert "A batch may take 24 h 0 m, the vendor's window" in said


def test_a_parameter_of_another_vendor_is_refused_and_one_of_none_is_a_warning(project):
    project.change('"params": {"max_tokens": 50}', '"params": {"max_tokens": 50, "brand_new": 1}')
    warning = "openai/gpt-4o: The parameter 'brand_new' is in no type that the vendor's SDK has"
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert plan["warnings"][0].startswith(warning)
    assert warning in project.on_file("plan", "ticket_labels").stdout
    [finding] = [one for one in project.json("doctor")["findings"] if one["check"] == "dataset ticket_labels"]
    assert finding["verdict"] == "warning"
    assert "takes its schema; " in finding["said"]
    assert "'brand_new' is in no type" in finding["said"]
    project.change('"brand_new": 1', '"max_output_tokens": 50')
    named = "it is called 'max_completion_tokens' there"
    assert named in project.on_file("plan", "ticket_labels", code=1).stderr
    [finding] = [one for one in project.json("doctor", code=3)["findings"] if one["check"] == "dataset ticket_labels"]
    assert finding["verdict"] == "problem"
    assert named in finding["said"]


def test_a_command_whose_program_is_missing_is_found_before_anything_is_sent(project):
    project.change("import os\n", "import os\n\nfrom dagster_llm_batch import CommandBatchResource\n")
    words = '["no-such-program", "{input}", "{output}"]'
    command = f"command=CommandBatchResource(command={words}, workdir={str(project.folder)!r})"
    project.change('"llm_batch": LLMBatchResource(', f'"llm_batch": LLMBatchResource({command}, ')
    project.change('"openai/gpt-4o"', '"command/m"')
    project.change('"max_cost_usd": 1,', "")
    missing = "the program 'no-such-program' is not on this machine"
    assert missing in project.on_file("plan", "ticket_labels", code=1).stderr
    findings = {one["check"]: one for one in project.json("doctor", code=3)["findings"]}
    for check in ("provider command", "dataset ticket_labels"):
        assert findings[check]["verdict"] == "problem"
        assert missing in findings[check]["said"]
    project.change('"no-such-program"', '"python3", "no_such_script.py"')
    assert "there is no file" in project.on_file("plan", "ticket_labels", code=1).stderr


@pytest.mark.slow
def test_a_cascade_tells_both_models_when_it_is_planned_and_what_it_accepts_once_that_is_known(project):
    project.change("    Limits,", "    Cascade, Limits,")
    project.change('bug"]', 'bug"]\n    confidence: float')
    project.change("range(3)", "range(40)")
    oracle = 'Cascade(oracle="openai/gpt-4o", target="topic", agreement=0.9, sample=30)'
    project.change('"openai/gpt-4o",', f'"openai/gpt-4o-mini",\n    "cascade": {oracle},')
    [plan] = project.json("plan", "ticket_labels")["plans"]
    told = plan["oracle"]
    assert (told["model"], told["requests"], told["later_most"]) == ("openai/gpt-4o", 30, 10)
    assert told["account"] == plan["account"]
    assert 0 < told["later"] < 10
    assert told["input_tokens"] < plan["input_tokens"]
    # The reservation is for all ten requests.
    later, kept = Decimal(told["later_usd"]), Decimal(told["reserved_usd"])
    assert 0 < later < kept < Decimal(told["estimated_usd"]) < Decimal(plan["estimated_usd"])
    # The bound of these requests is a part of the bound of all.
    assert kept < Decimal(told["later_bound_usd"]) < Decimal(plan["bound_usd"])
    printed = " ".join(project.on_file("plan", "ticket_labels").stdout.split())
    assert "model openai/gpt-4o-mini and openai/gpt-4o" in printed
    assert "oracle, at once 30 requests, about " in printed
    assert f"oracle, later about {told['later']} of 10 requests, $" in printed
    submission_id = project.submit()
    with project.engine() as engine:
        shards = engine.ledger.shards.of_submission(submission_id)
        assert engine.ledger.submissions.get(submission_id).reserved_usd == kept
    assert sum(shard.bill.estimated_usd or 0 for shard in shards if shard.model == "gpt-4o") == Decimal(
        told["estimated_usd"]
    )
    assert project.json("show", "ticket_labels")["cascade"]["threshold_text"].startswith("not set yet")
    watched = " ".join(project.on_file("watch", "--once").stdout.split())
    promise = "With a confidence of 95%, at least 90% of the labels agree with openai/gpt-4o on 'topic'."
    assert f"ticket_labels: {promise} Threshold: not set yet" in watched
    project.settle()
    shown = project.json("show", "ticket_labels")["cascade"]
    assert shown["promise"] == promise
    assert 0 <= shown["accepted_share"] <= 1
    assert f"of 30 sampled labels {shown['sample_wrong']} are wrong" in shown["threshold_text"]
    printed = " ".join(project.on_file("show", "ticket_labels").stdout.split())
    assert f"guarantee {promise}" in printed
    assert f"threshold {shown['threshold_text']}" in printed
    # With only the ledger, it is shown as before.
    alone = project.cli("show", "ticket_labels", "--ledger", project.ledger, "--namespace", "test", "--json").stdout
    assert json.loads(alone)["cascade"] is None


@pytest.mark.slow
def test_near_copies_of_a_cascade_are_planned_and_shown_with_the_guarantee_of_both(project):
    project.change("    Limits,", "    Cascade, Limits, Near, Resend, Reuse,")
    project.change('bug"]', 'bug"]\n    confidence: float')
    project.change("range(3)", "range(300)")
    project.change("Where is my invoice {prefix} {n}?", "{' '.join(str(n % 100 * 7919 + at) for at in range(12))} {n}")
    oracle = 'Cascade(oracle="openai/gpt-4o", target="topic", agreement=0.9, sample=30)'
    resend = 'Resend(reuse=Reuse(near=Near("body", "topic", error=0.1, sample=60)))'
    project.change('"openai/gpt-4o",', f'"openai/gpt-4o-mini",\n    "cascade": {oracle},\n    "resend": {resend},')
    promise = (
        "With a confidence of 90%, at least 80% of the labels agree with openai/gpt-4o on 'topic'. The cascade "
        "guarantees 90% for the rows that are no near copies, and an audit 80% for the copies; the two risks add up."
    )
    [plan] = project.json("plan", "ticket_labels")["plans"]
    # MinHash may overlook a few.
    copies, held = plan["near_copies"], plan["requests_held"]
    assert 190 <= copies <= 200
    assert (held, plan["promise"]) == (copies - 60, promise)
    later = 300 - copies - 30 + held
    assert (plan["oracle"]["requests"], plan["oracle"]["later_most"]) == (30 + 60, later)
    assert Decimal(plan["held_usd"]) * later == Decimal(plan["oracle"]["reserved_usd"]) * held
    printed = " ".join(project.on_file("plan", "ticket_labels").stdout.split())
    assert f"The cascade asks openai/gpt-4o for a sample of 30 of {300 - copies} rows" in printed
    assert printed.count("With a confidence of") == 1
    assert promise in printed
    project.submit()
    watched = " ".join(project.on_file("watch", "--once").stdout.split())
    assert f"ticket_labels: {promise} Threshold: not set yet" in watched
    shown = project.json("show", "ticket_labels")
    assert (shown["cascade"]["promise"], shown["audit"]["promise"]) == (promise, promise)


@pytest.mark.slow
def test_a_changed_prompt_is_planned_with_its_sample_and_shown_with_its_interval(project):
    project.change("    Limits,", "    Limits, Relabel, Resend, Reuse,")
    project.change("range(3)", "range(100)")
    resend = 'Resend(reuse=Reuse(relabel=Relabel("topic", share=0.2, sample=30)))'
    project.change('"openai/gpt-4o",', f'"openai/gpt-4o",\n    "resend": {resend},')
    project.submit()
    project.settle()
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert (plan["relabel"], plan["older_labels"], plan["requests_to_send"]) == (None, None, 0)
    project.change("You label tickets.", "You label tickets with care.")
    [plan] = project.json("plan", "ticket_labels")["plans"]
    assert (plan["older_labels"], plan["sampled_labels"], plan["requests_held"]) == (100, 30, 70)
    assert (plan["near"], plan["near_copies"], plan["requests_to_send"]) == (None, None, 30)
    assert Decimal(plan["held_usd"]) > 0
    printed = " ".join(project.on_file("plan", "ticket_labels").stdout.split())
    assert "Reuse(relabel=…) finds 100 rows with a label of submission" in printed
    assert "at most 20% of the rows with an older label have another 'topic'" in printed
    project.submit()
    assert project.json("show", "ticket_labels")["audit"]["result"] == "not decided yet: the sample answers first"
    project.settle()
    shown = project.json("show", "ticket_labels")["audit"]
    assert (shown["of"], shown["rows"], shown["sample_rows"], shown["look"]) == ("older_labels", 100, 30, 1)
    assert 0 <= shown["labels_changed_min"] <= shown["labels_changed_max"] <= 100
    printed = " ".join(project.on_file("show", "ticket_labels").stdout.split())
    assert f"guarantee {shown['promise']}" in printed
    assert f"{shown['labels_changed_min']} to {shown['labels_changed_max']} would change" in printed
    project.change('"billing", "bug"]', '"billing"]')
    assert "So older labels cannot stay. Nothing was sent." in project.on_file("plan", "ticket_labels", code=1).stderr


def test_a_plan_says_when_it_ends_by_what_and_how_often_that_was_right(project, capsys):
    [document] = project.json("plan", "ticket_labels")["plans"]
    assert (document["end_p50_seconds"], document["end_basis"], document["window_seconds"]) == (None, "none", 86_400)
    printed = " ".join(project.on_file("plan", "ticket_labels").stdout.split())
    assert "no forecast, which needs 10 days with batches that ended, 0 so far" in printed
    end = EndForecast(timedelta(hours=2), timedelta(hours=7.5), basis="submissions", ended=34, running=2)
    shard = Shard(
        shard_id="h", submission_id="s", wave=1, number=1, nonce="n", requests=9, bytes=9, path="p", digest="d"
    )
    money = {"estimated_usd": None, "realtime_usd": None, "price_basis": PriceBasis.BATCH}
    tuning = {"most_requests": {}, "lead_seconds": 0, "evidence": ["batches of the largest allowed size: too few days"]}
    preview = Preview(9, 0, 0, 9, 0, (shard,), 9, 9, **money, end=end, tuning=tuning)
    plan = Planned("labels", None, "m/m", "a", None, preview, timedelta(days=1), EndScore(20, 11, 19, 17))
    print_plan([plan])
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 within 2 h 0 m, 9 of 10 within 7 h 30 m (by 34 earlier submissions of similar size, 2" in printed
    assert "tuned batches of the largest allowed size: too few days" in printed
    assert (plan.document["tuning"], document["tuning"]) == (tuning, None)
    assert "17 of 19 ended by their p90, 11 of 20 by their p50" in printed
    told = {name: plan.document[name] for name in ("end_p50_seconds", "end_p90_seconds", "end_basis")}
    assert told == {"end_p50_seconds": 7_200, "end_p90_seconds": 27_000, "end_basis": "submissions"}
    counts = ("end_learned_from", "end_running", "end_forecasts_judged", "end_forecasts_held")
    assert tuple(plan.document[name] for name in counts) == (34, 2, 19, 17)


def test_an_io_manager_that_loads_within_runs_alone_is_an_error_that_names_it_and_the_next_step(project):
    project.change(
        "@dg.asset\ndef tickets",
        "class InRuns(dg.IOManager):\n"
        "    def handle_output(self, context, obj): ...\n\n"
        "    def load_input(self, context):\n"
        '        raise TypeError("there is no step: " + str(context.upstream_output.step_key))\n\n\n'
        "@dg.asset\ndef tickets",
    )
    project.change('"plain": "no LLMBatchResource",', '"io_manager": InRuns(),')
    told = project.on_file("plan", "asset_labels", code=1).stderr
    assert "The asset tickets cannot be loaded outside of a run: its IO manager 'io_manager' raised " in told
    assert "materialize the submission, whose run loads the rows" in told
    assert "Traceback" not in told


def test_answers_that_are_lost_are_counted_with_the_command_that_asks_again(project):
    project.land()
    for path in project.folder.rglob("*"):
        if path.is_file() and path.name.startswith(("wave-", "manifest.")):
            path.unlink()
    project.emulator.inject(WireFault(kind="status", route="GET /v1/files/*", status=404, times=None))
    shown = project.on_file("plan", "ticket_labels").stdout
    assert "answers lost" in shown
    assert "3 requests, here and at the provider" in shown
    assert "dagster-llm-batch retry ticket_labels" in shown
    assert project.json("plan", "ticket_labels")["plans"][0]["requests_lost"] == 3
    # They are sent again only on a person's request, and the price is shown.
    assert project.json("plan", "ticket_labels", "--again")["plans"][0]["requests_to_send"] == 3


def test_many_partitions_are_one_line_for_each_asset_and_all_lists_them(project):
    project.change('end_date="2026-01-04"', 'end_date="2026-02-04"')
    span = ["plan", "daily_labels", "--partition-range", "2026-01-01...2026-01-25"]
    short = project.on_file(*span, env={"COLUMNS": "240"}).stdout
    assert "25 partitions" in short
    assert "2026-01-13" not in short
    assert "List each partition with --all." in short
    long = project.on_file(*span, "--all", env={"COLUMNS": "240"}).stdout
    assert "2026-01-13" in long
    assert "25 partitions" not in long
    # The line of the only asset is the total.
    line = re.search(r"^.*25 partitions +(.*)$", short, re.MULTILINE)
    total = re.search(r"^total +(.*)$", long, re.MULTILINE)
    assert line[1].split() == total[1].split()
    assert "total" not in short
