"""Values in `defs.yaml` arrive in the assets unchanged."""

import json
import re
from dataclasses import fields
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.testing.test_cases import TestTranslation
from yaml_project import BATCH, EVAL, evaluation, labels, loaded, refusal

from dagster_llm_batch import (
    AssetRows,
    Checks,
    CommandBatchResource,
    Embedding,
    Evidence,
    Fallback,
    FileRows,
    Limits,
    LLMBatchResource,
    Moderation,
    OpenAIBatchResource,
    Precision,
    Prompt,
    QueueLimit,
    Realtime,
    Recall,
    Relabel,
    Resend,
    Reuse,
    Rolling,
    Spend,
    SqlRows,
    TokenPrice,
    llm_batch_assets,
)
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.definition import rules
from dagster_llm_batch.errors import ConfigError

SCHEMA = """
from typing import Literal
from pydantic import BaseModel

class Label(BaseModel):
    topic: Literal["billing", "bug"]
"""


NAMES = """
import dagster as dg

class Names:
    name = "names-1"

    def find(self, text):
        return []

@dg.template_var
def names():
    return Names()
"""


def described(one):
    """Return every part of the definitions that a component's YAML can change, for comparisons."""
    return [
        (
            spec.key,
            spec.partitions_def,
            spec.group_name,
            list(spec.owners),
            spec.tags,
            spec.code_version,
            spec.description,
            spec.deps,
            spec.automation_condition,
        )
        for definition in one
        for spec in definition.specs
    ]


def test_yaml_and_python_define_the_same_assets():
    text = """
    type: dagster_llm_batch.LLMBatchComponent
    attributes:
      name: ticket_labels
      rows: crm/tickets
      key: ticket_id
      prompt:
        system: You label support tickets.
        user: "{{ subject }}"
      response: {type: object, properties: {topic: {enum: [billing, bug]}}, required: [topic]}
      model: openai/gpt-5-nano
      params: {max_tokens: 50}
      partitions_def: {type: daily, start_date: "2026-01-01"}
      automation_condition: "{{ dg.AutomationCondition.on_cron('0 2 * * *') }}"
      max_cost_usd: 25
      group_name: crm
      owners: ["team:ml"]
      tags: {tier: "1"}
      key_prefix: gold
      deps: [crm/customers]
    """
    python = llm_batch_assets(
        name="ticket_labels",
        rows="crm/tickets",
        key="ticket_id",
        prompt=Prompt(system="You label support tickets.", user="{{ subject }}"),
        response={"type": "object", "properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]},
        model="openai/gpt-5-nano",
        params={"max_tokens": 50},
        partitions_def=dg.DailyPartitionsDefinition("2026-01-01"),
        automation_condition=dg.AutomationCondition.on_cron("0 2 * * *"),
        max_cost_usd=25,
        group_name="crm",
        owners=["team:ml"],
        tags={"tier": "1"},
        key_prefix="gold",
        deps=["crm/customers"],
    )
    with loaded(text) as project:
        assert described(project.component.assets) == described(python)
        assert project.component.max_cost_usd == 25


@pytest.mark.parametrize("prompt", ["{{ subject }} {% if body %}{{ body }}{% endif %}", "{{ row['odd name'] }}"])
@pytest.mark.parametrize("as_block", [True, False])
def test_an_inline_prompt_keeps_its_own_templates(prompt, as_block):
    with loaded(labels(prompt={"user": prompt, "system": "{{ language }}"} if as_block else prompt)) as project:
        assert project.component.prompt.user == prompt
        assert project.component.prompt.system == ("{{ language }}" if as_block else None)


def test_a_prompt_file_stands_beside_the_yaml_and_is_taken_as_it_is():
    prompt = {
        "user_file": "user.md.j2",
        "system_file": "system.md",
        "images": ["photo"],
        "image_root": "{{ env('IMAGES', 's3://bucket/images') }}",
        "documents": ["contract"],
        "file_root": "{{ env('CONTRACTS', 's3://bucket/contracts') }}",
        "examples": [{"user": "{{ not a template }}", "reply": '{"topic": "bug"}'}],
        "cache_prefix": True,
        "version": "3",
    }
    files = {"system.md": "You label tickets, in {{ language }}."}
    with loaded(labels(prompt=prompt), files={**files, "user.md.j2": "Gr\u00fc\u00dfe, {{ subject }}\n"}) as project:
        assert project.component.prompt == Prompt(
            user="Gr\u00fc\u00dfe, {{ subject }}\n",
            system="You label tickets, in {{ language }}.",
            images=["photo"],
            image_root="s3://bucket/images",
            documents=["contract"],
            file_root="s3://bucket/contracts",
            examples=[("{{ not a template }}", '{"topic": "bug"}')],
            cache_prefix=True,
            version="3",
        )


def test_each_field_of_a_prompt_reaches_its_value():
    given = {
        "user": "{{ subject }}",
        "system": "Be short.",
        "images": ["photo"],
        "image_root": "s3://bucket",
        "documents": ["contract"],
        "file_root": "s3://bucket",
        "documents_as": "upload",
        "examples": [{"user": "a", "reply": "b"}],
        "cache_prefix": True,
        "version": "3",
        "mask": {"columns": ["subject"], "what": ["email"], "by": ["{{ names }}"], "restore": ["text"]},
    }
    every = [field for field in fields(Prompt) if field.init]
    assert given.keys() == {field.name for field in every}
    component = {"type": BATCH, "template_vars_module": ".variables", "attributes": labels(prompt=given)}
    with loaded(yaml.safe_dump(component), files={"variables.py": NAMES}) as project:
        prompt = project.component.prompt
    assert all(getattr(prompt, field.name) != field.default for field in every if field.name in given)
    assert prompt.mask.settings() == {"columns": ["subject"], "what": ["email"], "by": ["names-1"]}
    assert prompt.mask.restore == ["text"]


def test_a_response_is_a_class_by_its_import_path_a_json_schema_an_embedding_or_text():
    with loaded(labels(response=".schema.Label"), files={"schema.py": SCHEMA}) as project:
        assert project.component.response.__name__ == "Label"
    with loaded(labels(response="dagster_llm_batch.components.templates.schema.TicketLabel")) as project:
        assert project.component.response.__name__ == "TicketLabel"
    schema = {"type": "object", "properties": {"grade": {"enum": ["1", "2"], "description": "{{ not ours }}"}}}
    with loaded(labels(response=schema)) as project:
        assert project.component.response == schema  # texts are still texts, and templates are not rendered
    with loaded(labels(model="openai/text-embedding-3-small", response={"type": "embedding", "dimensions": 8})) as one:
        assert one.component.response == Embedding(8)
    moderation = {"type": "moderation", "categories": ["hate"]}
    with loaded(labels(model="openai/omni-moderation-latest", response=moderation)) as project:
        assert project.component.response == Moderation(["hate"])
    with loaded(labels()) as project:
        assert project.component.response is None


def test_text_that_looks_like_a_number_stays_text():
    given = labels(
        params={"user": "0123", "stop": ["1"]},
        metadata={"zip": "01067"},
        tags={"tier": "1"},
        partitions_def={"type": "static", "partition_keys": ["2024", "2025"]},
        resource={"openai": {"api_key": "123", "project": "456"}},
    )
    with loaded(given) as project:
        assert project.component.params == {"user": "0123", "stop": ["1"]}
        assert project.component.metadata == {"zip": "01067"}
        assert project.component.tags == {"tier": "1"}
        assert project.component.partitions_def.get_partition_keys() == ["2024", "2025"]
        assert project.component.resource.openai.project == "456"


def test_templates_work_wherever_they_are_not_the_models(monkeypatch):
    monkeypatch.setenv("LIMIT", "12")
    given = labels(
        max_cost_usd="{{ env.LIMIT }}",
        params={"max_tokens": "{{ 25 * 2 }}"},
        checks={"min_coverage": "{{ 99 / 100 }}", "blocking": False},
        description="Up to {{ env.LIMIT }} dollars",
        automation_condition="{{ on_labels_ready() }}",
    )
    with loaded(given) as project:
        component = project.component
        assert component.max_cost_usd == 12
        assert component.params == {"max_tokens": 50}
        assert (component.checks.min_coverage, component.checks.blocking) == (0.99, False)
        assert project.spec("ticket_labels").description == "Up to 12 dollars"
        assert project.spec("ticket_labels_batch").automation_condition.get_label() == "on_labels_ready"


def test_an_object_can_come_from_the_users_own_template_variables():
    variables = """
    import dagster as dg
    from dagster_llm_batch import LLMBatchResource, CommandBatchResource

    @dg.template_var
    def weekdays():
        return dg.TimeWindowPartitionsDefinition(start="2026-01-01", cron_schedule="0 0 * * 1-5", fmt="%Y-%m-%d")

    @dg.template_var
    def rows():
        return lambda context: []

    @dg.template_var
    def llm():
        return LLMBatchResource(command=CommandBatchResource(command=["true", "{input}", "{output}"]))
    """
    text = """
    type: dagster_llm_batch.LLMBatchComponent
    template_vars_module: .variables
    attributes:
      name: ticket_labels
      rows: "{{ rows }}"
      key: id
      prompt: "{{ text }}"
      model: command/own
      partitions_def: "{{ weekdays }}"
      resource: "{{ llm }}"
    """
    with loaded(text, files={"variables.py": variables}) as project:
        assert project.spec("ticket_labels").partitions_def.cron_schedule == "0 0 * * 1-5"
        assert list(project.spec("ticket_labels_batch").deps) == []
        assert isinstance(project.defs.resources["llm_batch"], LLMBatchResource)


def test_rows_are_an_asset_by_its_key_a_function_by_its_import_path_or_a_query():
    with loaded(labels(rows="crm/tickets")) as project:
        [dep] = project.spec("ticket_labels_batch").deps
        assert dep.asset_key == dg.AssetKey(["crm", "tickets"])
    files = {"inputs.py": "def rows(context):\n    return []\n"}
    with loaded(labels(rows={"function": ".inputs.rows"}, deps=["crm/raw"]), files=files) as project:
        assert project.component.rows.__name__ == "rows"
        [dep] = project.spec("ticket_labels_batch").deps
        assert dep.asset_key == dg.AssetKey(["crm", "raw"])
    query = {"sql": "select * from tickets where day = $partition_key", "resource": "warehouse"}
    with loaded(labels(rows=query, partitions_def={"type": "daily", "start_date": "2026-01-01"})) as project:
        assert project.component.rows == SqlRows(**query)


def test_rows_of_an_asset_that_meet_a_condition_are_an_asset_and_when():
    given = {"asset": "crm/kinds", "when": "kind == 'invoice' and amount > 100"}
    with loaded(labels(rows=given)) as project:
        assert project.component.rows == AssetRows(**given)
        spec = project.spec("ticket_labels_batch")
        assert [dep.asset_key for dep in spec.deps] == [dg.AssetKey(["crm", "kinds"])]
        assert spec.metadata["llm_batch/when"] == given["when"]
    assert "'kind.upper()' is not allowed here" in refusal(labels(rows={**given, "when": "kind.upper() == 'A'"}))


def test_rows_of_a_file_start_at_the_folder_of_the_yaml_or_of_the_project():
    daily = {"type": "daily", "start_date": "2026-01-01"}
    given = {"path": "comments.csv", "partition_column": "day"}
    with loaded(labels(rows=given, partitions_def=daily)) as project:
        assert project.component.rows == FileRows(path=str(project.folder / "comments.csv"), partition_column="day")
    with loaded(labels(rows={"path": "{{ context.project_root }}/comments.csv"})) as project:
        path = Path(project.component.rows.path)
        assert path.is_absolute()
        assert path.parent in project.folder.resolve().parents
    with loaded(labels(rows={"path": "s3://bucket/comments.parquet"})) as project:
        assert project.component.rows.path == "s3://bucket/comments.parquet"
    assert "must end in .csv, .tsv, .txt or .parquet" in refusal(labels(rows={"path": "comments.xlsx"}))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "hourly", "start_date": "2026-01-01-00:00"}, dg.HourlyPartitionsDefinition("2026-01-01-00:00")),
        (
            {"type": "daily", "start_date": "2026-01-01", "end_date": "2026-02-01", "timezone": "Europe/Berlin"},
            dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01", timezone="Europe/Berlin"),
        ),
        (
            {"type": "weekly", "start_date": "2026-01-01", "day_offset": 1},
            dg.WeeklyPartitionsDefinition("2026-01-01", day_offset=1),
        ),
        (
            {"type": "monthly", "start_date": "2026-01-01", "day_offset": 5},
            dg.MonthlyPartitionsDefinition("2026-01-01", day_offset=5),
        ),
        (
            {"type": "time_window", "start_date": "2026-01-01", "cron_schedule": "0 6 * * 1-5", "fmt": "%Y-%m-%d"},
            dg.TimeWindowPartitionsDefinition(start="2026-01-01", cron_schedule="0 6 * * 1-5", fmt="%Y-%m-%d"),
        ),
        ({"type": "static", "partition_keys": ["de", "fr"]}, dg.StaticPartitionsDefinition(["de", "fr"])),
        ({"type": "dynamic", "name": "customers"}, dg.DynamicPartitionsDefinition(name="customers")),
        (
            {
                "type": "multi",
                "dimensions": {
                    "day": {"type": "daily", "start_date": "2026-01-01"},
                    "customer": {"type": "dynamic", "name": "customers"},
                },
            },
            dg.MultiPartitionsDefinition(
                {
                    "day": dg.DailyPartitionsDefinition("2026-01-01"),
                    "customer": dg.DynamicPartitionsDefinition(name="customers"),
                }
            ),
        ),
    ],
    ids=lambda one: one["type"] if isinstance(one, dict) else "",
)
def test_partitions_of_every_kind_are_those_of_dagster(given, expected):
    with loaded(labels(partitions_def=given)) as project:
        for name in ("ticket_labels", "ticket_labels_batch", "ticket_labels_rejects"):
            assert project.spec(name).partitions_def == expected
    with loaded(evaluation(partitions_def=given), EVAL) as project:
        assert project.spec("ticket_eval").partitions_def == expected


def test_policies_prices_and_backfills_arrive_as_they_are_written():
    given = labels(
        resend={"max_waves": 5},
        spend={"price": {"input_usd": "0.02", "output_usd": 0.15}, "expected_output_tokens": "{{ 5 * 6 }}"},
        backfill_policy={"type": "multi_run", "max_partitions_per_run": 7},
        partitions_def={"type": "daily", "start_date": "2026-01-01"},
    )
    with loaded(given) as project:
        component = project.component
        assert component.resend == Resend(max_waves=5)
        assert component.spend == Spend(TokenPrice(Decimal("0.02"), Decimal("0.15")), expected_output_tokens=30)
        assert {one.backfill_policy for one in component.assets} == {dg.BackfillPolicy.multi_run(7)}
    with loaded({**given, "backfill_policy": {"type": "single_run"}}) as project:
        assert {one.backfill_policy for one in project.component.assets} == {dg.BackfillPolicy.single_run()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"relabel": {"target": "topic", "share": 0.05}}, Reuse(relabel=Relabel("topic", share=0.05))),
        ({"relabel": {"target": "topic", "sample": 400}}, Reuse(relabel=Relabel("topic", sample=400))),
    ],
)
def test_settings_of_shared_answers_arrive_as_they_are_written(given, expected):
    response = "dagster_llm_batch.components.templates.schema.TicketLabel"
    with loaded(labels(response=response, resend={"reuse": given})) as project:
        assert project.component.resend == Resend(reuse=expected)


def test_what_becomes_of_rows_that_nobody_answers_in_time_is_said_in_yaml():
    given = labels(
        resend={
            "fallback": [
                "gemini/gemini-2.5-flash",
                {"model": "anthropic/claude-haiku-4-5", "params": {"max_tokens": 9}},
                {"model": "openai/own", "price": {"input_usd": "{{ 1 + 1 }}", "output_usd": 3}},
            ],
            "fallback_after": {"minutes": 90},
        },
        realtime={
            "deadline": "{{ datetime.timedelta(hours=6) }}",
            "urgent": "is_vip",
            "concurrency": 3,
            "patience": {"minutes": 2},
        },
        limits={"max_requests_per_batch": "{{ 2 * 5 }}", "max_bytes_per_batch": 1000, "below_minimum": "realtime"},
    )
    with loaded(given) as project:
        component = project.component
        fallback = [
            "gemini/gemini-2.5-flash",
            Fallback("anthropic/claude-haiku-4-5", params={"max_tokens": 9}),
            Fallback("openai/own", price=TokenPrice(2, 3)),
        ]
        assert component.resend == Resend(fallback=fallback, fallback_after=timedelta(minutes=90))
        assert component.realtime == Realtime(timedelta(hours=6), "is_vip", 3, timedelta(minutes=2))
        assert component.limits == Limits(10, 1000, "realtime")
    with loaded(labels(realtime={"deadline": {"days": 1, "hours": 12}})) as project:
        assert project.component.realtime == Realtime(timedelta(days=1.5))


def test_evidence_is_said_in_yaml():
    quoting = {"type": "object", "properties": {"topic": {"type": "string"}, "quote": {"type": "string"}}}
    given = {"quotes": {"quote": "subject"}, "min_score": 0.9, "reject_missing": True}
    with loaded(labels(checks={"evidence": given}, response=quoting, keep=["subject"])) as project:
        assert project.component.checks == Checks(
            evidence=Evidence({"quote": "subject"}, min_score=0.9, reject_missing=True)
        )


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"rows": 200, "audit": "{{ 1 / 50 }}"}, Rolling(200, 0.02)), ("partition", "partition"), ({}, Rolling())],
)
def test_what_calibrates_a_cascade_is_said_in_yaml(given, expected):
    cascade = {"oracle": "openai/gpt-5", "target": "topic", "score": "sure", "calibrate": given}
    by_day = {"type": "daily", "start_date": "2026-01-01"}
    sure = {"type": "object", "properties": {"topic": {"enum": ["a", "b"]}, "sure": {"type": "number"}}}
    with loaded(labels(cascade=cascade, response=sure, partitions_def=by_day)) as project:
        assert project.component.cascade.calibrate == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"precision": "{{ 19 / 20 }}", "yes": "a"}, Precision(0.95, "a")),
        ({"recall": 0.9, "yes": "b"}, Recall(0.9, "b")),
    ],
)
def test_the_guarantee_of_a_filter_is_said_in_yaml(given, expected):
    cascade = {"oracle": "openai/gpt-5", "target": "topic", "score": "sure", "guarantee": given}
    sure = {"type": "object", "properties": {"topic": {"enum": ["a", "b"]}, "sure": {"type": "number"}}}
    with loaded(labels(cascade=cascade, response=sure)) as project:
        assert project.component.cascade.guarantee == expected


def test_a_template_gives_a_whole_object_or_a_part_of_it():
    variables = """
    import dagster as dg
    from dagster_llm_batch import Fallback, Realtime

    @dg.template_var
    def realtime():
        return Realtime(concurrency=2)

    @dg.template_var
    def models():
        return [Fallback("openai/gpt-5")]
    """
    text = """
    type: dagster_llm_batch.LLMBatchComponent
    template_vars_module: .variables
    attributes:
      name: ticket_labels
      rows: tickets
      key: id
      prompt: "{{ text }}"
      model: openai/own
      realtime: "{{ realtime }}"
      resend: {fallback: "{{ models }}"}
    """
    with loaded(text, files={"variables.py": variables}) as project:
        assert project.component.realtime == Realtime(concurrency=2)
        assert project.component.resend == Resend(fallback=[Fallback("openai/gpt-5")])


def test_budgets_and_queue_limits_are_settings_of_the_resource(monkeypatch):
    monkeypatch.setenv("MONTHLY_USD", "250")
    resource = {
        "openai": {"api_key": "k"},
        "budgets": [
            {"max_usd": "{{ env.MONTHLY_USD }}"},
            {"max_usd": 5, "period": "day", "asset": "a", "limit": "hard"},
        ],
        "queue_limits": {"openai/gpt-4o": {"max_tokens": 90_000}},
    }
    with loaded(labels(resource=resource)) as project:
        found = project.component.resource
        assert [one.rule() for one in found.budgets] == [rules.Budget(250), rules.Budget(5, "day", "a", limit="hard")]
        assert found.queue_limits == {"openai/gpt-4o": QueueLimit(max_tokens=90_000)}


def test_providers_have_names_of_the_users_own_and_a_kind(monkeypatch):
    monkeypatch.setenv("EU_KEY", "sk-secret")
    resource = {
        "openai": {"api_key": "k"},
        "providers": {
            "openai_eu": {"kind": "openai", "api_key": "{{ env.EU_KEY }}", "project": "eu"},
            "tickets": {"kind": "command", "command": ["run", "{input}", "{output}"]},
            "azure": {
                "kind": "azure",
                "base_url": "https://r.openai.azure.com/openai/v1",
                "token_provider": "os:getcwd",
            },
        },
        "queue_limits": {"openai_eu": {"max_batches": 2}},
    }
    with loaded(labels(resource=resource, model="openai_eu/gpt-4o")) as project:
        found = project.component.resource
        assert {name: type(one) for name, one in found.providers.items()} == {
            "openai_eu": OpenAIBatchResource,
            "tickets": CommandBatchResource,
            "azure": OpenAIBatchResource,
        }
        assert (found.providers["openai_eu"].server, found.providers["azure"].server) == ("openai", "azure")
        assert found.make_providers(Path())["azure"].price_book == "azure"
        assert isinstance(found.providers["openai_eu"].api_key, dg.EnvVar)
        assert found.make_providers(Path())["openai_eu"].account == "api.openai.com/v1?project=eu"
        assert "sk-secret" not in repr(found)


def test_a_key_from_the_environment_stays_a_name_and_is_shown_nowhere(monkeypatch):
    monkeypatch.setenv("MY_LLM_KEY", "sk-secret")
    resource = {
        "namespace": "{{ env('NAMESPACE', 'dev') }}",
        "ledger_url": "{{ env('LEDGER_URL') }}",
        "openai": {
            "api_key": "{{ env.MY_LLM_KEY }}",
            "timeout_seconds": "{{ env('SECONDS', 30) }}",
        },
    }
    with loaded(labels(resource=resource)) as project:
        found = project.component.resource
        assert found.namespace == "dev"
        assert found.ledger_url == dg.EnvVar("LEDGER_URL")
        assert found.openai.timeout_seconds == 30
        assert isinstance(found.openai.api_key, dg.EnvVar)
        shown = project.defs.get_repository_def().get_top_level_resources()["llm_batch"].config_schema.default_value
        assert "LEDGER_URL" in json.dumps(shown)
        assert "sk-secret" not in repr(found) + json.dumps(shown)


@pytest.mark.parametrize(
    "resource",
    [
        {"anthropic": {"api_key": "k", "betas": ["output-300k-2026-03-24"]}},
        {"anthropic": {"platform": "aws", "region_name": "us-east-1", "workspace_id": "w", "api_key": "k"}},
        {"openrouter": {"api_key": "k", "server": "opper", "routing": {"only": ["openai"]}}},
        {"bedrock": {"role_arn": "arn:aws:iam::1:role/r", "s3_uri": "s3://b/f", "tags": {"team": "ml"}}},
        {"vertex": {"project": "p", "location": "us-central1", "bucket": "b"}},
        {"gemini": {"api_key": "k"}, "openai": {"api_key": "k", "base_url": "http://127.0.0.1:1/v1"}},
        {"command": {"command": ["vllm", "run-batch", "-i", "{input}", "-o", "{output}"]}},
        {"ray": {"address": "http://h:8265", "storage": "/s", "vllm": {"engine_kwargs": {"max_model_len": 9}}}},
    ],
)
def test_each_provider_has_its_settings_under_its_name(resource):
    with loaded(labels(resource=resource)) as project:
        found = project.component.resource
        for name, settings in resource.items():
            assert {key: getattr(getattr(found, name), key) for key in settings} == settings


def test_sensor_and_jobs_come_with_the_resource_unless_it_is_said_otherwise():
    resource = {"openai": {"api_key": "k"}}
    settings = {
        "name": "poll",
        "minimum_interval_seconds": 60,
        "default_status": "STOPPED",
        "max_partitions_per_run": 5,
        "run_tags": {"team": "ml"},
        "target": ["group:support", "crm/ticket_labels"],
    }
    expected = [
        ({}, []),
        ({"resource": resource}, ["llm_batch_sensor"]),
        ({"resource": resource, "sensor": False}, []),
        ({"sensor": True}, ["llm_batch_sensor"]),
        ({"sensor": settings}, ["poll"]),
    ]
    for given, names in expected:
        with loaded(labels(**given)) as project:
            assert [one.name for one in project.defs.sensors or ()] == names
            jobs = {"llm_batch_cancel", "llm_batch_resolve"} if "resource" in given else set()
            assert {one.name for one in project.defs.jobs or ()} == jobs
            for sensor in project.defs.sensors or ():
                if sensor.name == "poll":
                    assert sensor.minimum_interval_seconds == 60
                    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED


def test_retention_is_a_schedule_with_its_job():
    retention = {"raw_older_than": {"days": 90}, "cron_schedule": "0 3 * * 1", "default_status": "STOPPED"}
    with loaded(labels(resource={"openai": {"api_key": "k"}}, retention=retention)) as project:
        [schedule] = project.defs.schedules
        assert (schedule.name, schedule.cron_schedule) == ("llm_batch_retention", "0 3 * * 1")
        assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
        config = project.defs.resolve_job_def("llm_batch_retention").run_config
        assert config["ops"]["prune_payloads"]["config"]["raw_older_than_days"] == 90


def test_the_resource_is_under_its_key_and_the_sensor_asks_for_that_one():
    given = labels(resource={"openai": {"api_key": "k"}}, resource_key="second_llm")
    with loaded(given) as project:
        assert set(project.defs.resources) == {"second_llm"}
        [sensor] = project.defs.sensors
        assert "second_llm" in sensor.required_resource_keys
        project.defs.get_repository_def()  # all required resources exist


def test_an_evaluation_says_all_in_yaml():
    given = evaluation(
        candidates={"small": "labels/small", "large": "labels/large"},
        rejects={"small": "labels/small_rejects"},
        target=["topic", {"name": "urgency", "gold_column": "priority", "kappa_weights": "quadratic"}],
        gold_target={"topic": "true_topic"},
        min_accuracy={"large": {"least": 0.9, "confidence": 0.95}, "small": 0.5},
        min_kappa={"least": 0.6, "on": "labeled"},
        max_ece=0.1,
        confidence={"topic": "sureness"},
        regression=True,
        check_severity="WARN",
        blocking=True,
        automation_condition=None,
    )
    with loaded(given, EVAL) as project:
        spec = project.spec("ticket_eval")
        deps = {dep.asset_key.to_user_string() for dep in spec.deps}
        assert deps >= {"ticket_gold", "labels/small", "labels/large", "labels/small_rejects"}
        assert spec.automation_condition is None
        checks = {one.name: one for made in project.component.assets for one in made.check_specs}
        assert set(checks) >= {"accuracy", "kappa", "ece"}
        assert all(one.blocking for one in checks.values())
        assert checks["accuracy"].description == "At least 0.9, with 0.95 confidence by large; 0.5 by small."
        assert checks["kappa"].description == "At least 0.6, of labeled rows by small; 0.6, of labeled rows by large."
        assert project.component.check_severity is dg.AssetCheckSeverity.WARN
    with loaded(evaluation(), EVAL) as project:
        assert project.spec("ticket_eval").automation_condition is not None


class TestTranslationOfLabels(TestTranslation):
    """Dagster's own cases, on a labeled dataset."""

    def test_translation(self, attributes, assertion, key_modifier):
        with loaded(labels(translation=attributes)) as project:
            key = dg.AssetKey("ticket_labels") if key_modifier is None else key_modifier(dg.AssetKey("ticket_labels"))
            assert assertion(project.spec(key.to_user_string()))


class TestTranslationOfEvaluations(TestTranslation):
    """Dagster's own cases, on an evaluation."""

    def test_translation(self, attributes, assertion, key_modifier):
        with loaded(evaluation(translation=attributes), EVAL) as project:
            key = dg.AssetKey("ticket_eval") if key_modifier is None else key_modifier(dg.AssetKey("ticket_eval"))
            assert assertion(project.spec(key.to_user_string()))


def test_a_translation_can_tell_the_assets_apart_by_their_role():
    translation = {"group_name": "{{ 'published' if role == 'labels' else 'internal' }}"}
    with loaded(labels(translation=translation)) as project:
        assert project.spec("ticket_labels").group_name == "published"
        assert project.spec("ticket_labels_batch").group_name == "internal"
        assert project.spec("ticket_labels_rejects").group_name == "internal"


def test_tables_beside_an_evaluation_have_their_own_roles():
    translation = {"group_name": "{{ role }}", "tags": {"of": "{{ dataset }}"}}
    with loaded(evaluation(translation=translation, regression=True), EVAL) as project:
        groups = {one.key.path[-1]: one.group_name for made in project.defs.assets for one in made.specs}
        beside = ("mistakes", "failures", "per_class", "versions", "accepted")
        assert groups == {"ticket_eval": "evaluation", **{f"ticket_eval_{role}": role for role in beside}}
        assert project.spec("ticket_eval_mistakes").tags["of"] == "ticket_eval"


def test_a_translated_key_is_no_other_dataset_for_the_ledger():
    with loaded(labels(translation={"key": "labels/{{ spec.key.to_user_string() }}"})) as project:
        assert dataset_of(project.component.assets).name == "ticket_labels"
        keys = {one.key.to_user_string() for made in project.defs.assets for one in made.specs}
        assert keys == {"labels/ticket_labels", "labels/ticket_labels_batch", "labels/ticket_labels_rejects"}
        checks = {one.asset_key.to_user_string() for made in project.component.assets for one in made.check_specs}
        assert checks == {"labels/ticket_labels", "labels/ticket_labels_batch"}


def test_a_subclass_can_change_specs_in_python():
    own = """
    from dataclasses import dataclass
    from dagster_llm_batch import LLMBatchComponent

    @dataclass(kw_only=True)
    class Ours(LLMBatchComponent):
        def get_asset_spec(self, data):
            return super().get_asset_spec(data).merge_attributes(tags={"cost_center": data.dataset})
    """
    with loaded(labels(), kind=".own.Ours", files={"own.py": own}) as project:
        assert project.spec("ticket_labels").tags["cost_center"] == "ticket_labels"
        assert project.spec("ticket_labels_batch").tags["cost_center"] == "ticket_labels"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"allowed_regions": ["eu", "eu-*"]}, "which runs in 'us'. Allowed by allowed_regions: 'eu', 'eu-*'."),
        ({"allowed_providers": ["bedrock"]}, "the provider 'openai_us' is not allowed"),
        ({"allowed_regions": ["us"]}, None),
    ],
)
def test_a_dataset_that_would_send_rows_elsewhere_does_not_load(rules, said):
    provider = {"kind": "openai", "api_key": "{{ env.A_KEY }}", "base_url": "https://us.api.openai.com/v1"}
    given = labels(model="openai_us/gpt-4o", resource={"providers": {"openai_us": provider}, **rules})
    with loaded(given) as project:
        if said is None:
            dg.Definitions.validate_loadable(project.defs)
            return
        with pytest.raises(ConfigError, match=re.escape(said)):
            dg.Definitions.validate_loadable(project.defs)


@pytest.mark.parametrize(
    ("server", "fallback", "said"),
    [
        ({}, "own/small", "would send rows to own/small, whose region is unknown"),
        ({"runs_in": "eu-west-1"}, "own/small", None),
        ({"runs_in": "eu-west-1"}, {"model": "own/small", "params": {"max_tokens": 50}}, None),
        ({"runs_in": "us-east-1"}, {"model": "own/small", "params": {"max_tokens": 50}}, "runs in 'us-east-1'"),
    ],
)
def test_a_fallback_to_a_preset_needs_an_allowed_region_too(server, fallback, said):
    providers = {
        "openai_eu": {"kind": "openai", "api_key": "{{ env.A_KEY }}", "base_url": "https://eu.api.openai.com/v1"},
        "own": {"kind": "vllm", "base_url": "http://llm.internal:8000/v1", **server},
    }
    resource = {"providers": providers, "allowed_regions": ["eu", "eu-*"]}
    given = labels(model="openai_eu/gpt-4o", resend={"fallback": [fallback]}, resource=resource)
    with loaded(given) as project:
        if said is None:
            dg.Definitions.validate_loadable(project.defs)
            return
        with pytest.raises(ConfigError, match=re.escape(said)):
            dg.Definitions.validate_loadable(project.defs)
