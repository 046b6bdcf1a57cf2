"""A misspelled argument, or one of a wrong kind, is refused where it is written, with the right name or form."""

from __future__ import annotations

import inspect
import types
from collections.abc import Sequence
from dataclasses import is_dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, get_type_hints

import dagster as dg
import numpy as np
import pytest

import dagster_llm_batch
from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    Budget,
    Checks,
    CommandBatchResource,
    Fallback,
    GeminiBatchResource,
    HiveParquetIOManager,
    Limits,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    QueueLimit,
    RayBatchResource,
    Realtime,
    Resend,
    Rubric,
    Spend,
    TokenPrice,
    VertexBatchResource,
    build_llm_batch_alert_sensor,
    build_llm_batch_sensor,
    evaluation_assets,
    llm_batch_assets,
    pairwise_judge_assets,
    resources,
    rubric_judge_assets,
    skew_assets,
    streams,
)
from dagster_llm_batch.assets.submission import SubmitConfig
from dagster_llm_batch.definition import rules
from dagster_llm_batch.distributed import FlinkRows, RayWorkers, SparkWorkers
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.regression import Accept
from dagster_llm_batch.jobs import CancelConfig, ResolveConfig
from dagster_llm_batch.metrics import Target
from tests.tables import table

_PUBLIC = {
    **{name: getattr(dagster_llm_batch, name) for name in dagster_llm_batch.__all__ if name != "__version__"},
    **{name: getattr(streams, name) for name in streams.__all__},
    **{f"engine.{one.__name__}": one for one in (rules.Budget, rules.QueueLimit, Labeling, Target)},
    **{one.__name__: one for one in (SparkWorkers, RayWorkers, FlinkRows)},
}
_NOT_WRITTEN = {"RowsContext", "KafkaWindow", "Student"}
"""Users get these, and do not create them."""

FACTORIES = {
    name: one
    for name, one in _PUBLIC.items()
    if (isinstance(one, types.FunctionType) and name.endswith(("_assets", "_asset", "_labels")))
    or name.startswith("build_")
}
SETTINGS = {name: one for name, one in _PUBLIC.items() if is_dataclass(one) and name not in _NOT_WRITTEN} | {
    "StreamLabeler": streams.StreamLabeler
}
SETTINGS = {name: one for name, one in SETTINGS.items() if not name.endswith("Component")}
CONFIGS = {
    **{name: getattr(resources, name) for name in resources.__all__ if name != "preset"},
    **{
        one.__name__: one
        for one in (streams.KafkaResource, HiveParquetIOManager, SubmitConfig, CancelConfig, ResolveConfig, Accept)
    },
}
ASKED: dict[str, Any] = {
    "name": "labels",
    "rows": "tickets",
    "key": "id",
    "prompt": Prompt(user="{{ text }}"),
    "model": "openai/gpt-4o",
}


def _first(called: Any) -> str:
    return next(iter(inspect.signature(called).parameters))


def test_all_public_factories_and_settings_are_looked_at() -> None:
    assert len(FACTORIES) >= 16
    assert {"Prompt", "Fallback", "TokenPrice", "Embedding", "KafkaTopic"} <= set(SETTINGS)
    assert {"Limits", "Realtime", "Resend", "Spend", "Checks"} <= set(SETTINGS)


@table("name", [*FACTORIES, *SETTINGS])
def test_an_unknown_argument_is_refused_with_the_nearest_right_name(name: str) -> None:
    called = {**FACTORIES, **SETTINGS}[name]
    right = _first(called)
    with pytest.raises(ConfigError) as caught:
        called(**{f"{right}s_": "x"})
    assert f"'{right}s_'; did you mean '{right}'?" in str(caught.value)


@table("name", [*FACTORIES, *SETTINGS])
def test_an_argument_of_another_kind_is_refused_with_its_name(name: str) -> None:
    """Give each argument a value that is certainly wrong."""
    called = {**FACTORIES, **SETTINGS}[name]
    hints = get_type_hints(called if is_dataclass(called) else getattr(called, "__init__", called))
    hints = hints if is_dataclass(called) or isinstance(called, type) else get_type_hints(called)
    names = [one for one in inspect.signature(called).parameters if hints.get(one, Any) is not Any]
    assert names or name == "SparkWorkers"
    for one in names:
        with pytest.raises(ConfigError) as caught:
            called(**{one: object()})
        assert f"{one}=<object object at" in str(caught.value)
        assert "is not allowed; it takes" in str(caught.value)


@table("name", CONFIGS)
def test_an_unknown_field_of_a_configuration_is_refused_with_the_nearest_right_name(name: str) -> None:
    config = CONFIGS[name]
    right = next(iter(config.model_fields))
    with pytest.raises(ConfigError) as caught:
        config(**{f"{right}_": "x"})
    assert f"there is no field '{right}_'; did you mean '{right}'? The fields are {right}" in str(caught.value)
    if hasattr(config, "configure_at_launch"):
        with pytest.raises(ConfigError, match="did you mean"):
            config.configure_at_launch(**{f"{right}_": "x"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name_space": "prod"}, "did you mean 'namespace'?"),
        ({"ledger": "postgresql://db"}, "did you mean 'ledger_url'?"),
        (
            {"budgets": [{"max_usd": 3, "assets": "labels"}]},
            "Budget: there is no field 'assets'; did you mean 'asset'?",
        ),
        ({"queue_limits": {"openai": {"max_token": 3}}}, "did you mean 'max_tokens'?"),
        ({"openai": {"api_key": "sk-1", "base_ulr": "http://x"}}, "did you mean 'base_url'?"),
        (
            {"queue_limits": {"opnai": {"max_batches": 3}}},
            "did you mean 'openai'? The configured providers are openai.",
        ),
        ({"queue_limits": {"gemini": {"max_batches": 3}}}, "The configured providers are openai. Configure it"),
        ({"queue_limits": {"openai/": {"max_batches": 3}}}, "names no model"),
    ],
)
def test_a_deployment_with_a_typo_is_refused_also_deep_within(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LLMBatchResource(**{"openai": OpenAIBatchResource(api_key="sk-1"), **wrong})
    assert message in str(caught.value)
    assert "sk-1" not in str(caught.value)


_PLACE = {"project": "p", "location": "l", "bucket": "b"}
_BEDROCK = {"role_arn": "arn:aws:iam::123456789012:role/r", "s3_uri": "s3://bucket/f", "region_name": "us-east-1"}
ADDRESSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "openai": (OpenAIBatchResource, {"api_key": "sk-1"}),
    "anthropic": (AnthropicBatchResource, {"api_key": "sk-1"}),
    "gemini": (GeminiBatchResource, {"api_key": "sk-1"}),
    "vertex": (VertexBatchResource, {**_PLACE, "access_token": "t"}),
    "bedrock": (BedrockBatchResource, _BEDROCK),
    "ray": (RayBatchResource, {"address": "http://r:1", "storage": "/s"}),
}


@table("url", ["", "https://llm.internal/v1\n", "https://llm internal/v1"])
@table("name", ADDRESSED)
def test_an_address_of_a_variable_that_is_empty_or_has_a_line_break_is_not_the_vendors_own(name: str, url: str) -> None:
    """Refuse it: `dg.EnvVar` of an empty variable would otherwise send key and rows to the vendor."""
    resource, given = ADDRESSED[name]
    with pytest.raises(ConfigError, match="is no web address"):
        resource(**given, **{"endpoint_url" if name == "bedrock" else "base_url": url}).provider()


@table("end", ["?api-version=2025-03-01&key=sk-secret", "#sk-secret"])
@table("name", ADDRESSED)
def test_an_address_that_no_path_can_be_put_behind_is_refused_without_what_it_ends_with(name: str, end: str) -> None:
    resource, given = ADDRESSED[name]
    with pytest.raises(ConfigError, match=r"'https://llm.internal/v1' goes on with .* Leave that out") as refused:
        resource(
            **given, **{"endpoint_url" if name == "bedrock" else "base_url": f"https://llm.internal/v1{end}"}
        ).provider()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ADDRESSED)
def test_numbers_of_a_provider_that_cannot_be_are_refused_where_they_are_written(name: str) -> None:
    resource, given = ADDRESSED[name]
    wrong = [("timeout_seconds", 0), ("timeout_seconds", -1), ("settle_seconds", -1)]
    for field, value in wrong:
        if field in resource.model_fields:
            with pytest.raises(ConfigError, match=f"{resource.__name__}.{field}={value}.* cannot be; it is "):
                resource(**given, **{field: value})


def test_settings_beside_those_of_an_aws_resource_are_checked_alike() -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_attempts'"):
        BedrockBatchResource.like(_Aws(), role_arn="arn", s3_uri="s3://b", max_attempt=3)


class _Aws:
    """The fields of dagster-aws that `like` copies."""

    def __init__(self) -> None:
        vars(self).update(
            dict.fromkeys(
                ("region_name", "profile_name", "aws_access_key_id", "aws_secret_access_key", "aws_session_token")
            ),
            max_attempts=5,
            use_ssl=True,
            verify=None,
        )


def test_resources_still_resolve_in_dagster_by_variable_nested_and_at_the_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DLB_TEST_ADDRESS", "http://127.0.0.1:1/v1")
    seen = []

    @dg.op
    def look(llm_batch: LLMBatchResource) -> None:
        seen.append(llm_batch)

    @dg.job
    def looks() -> None:
        look()

    given = LLMBatchResource(
        openai=OpenAIBatchResource(api_key="k", base_url=dg.EnvVar("DLB_TEST_ADDRESS")),
        budgets=[Budget(max_usd=3, period="day")],
        queue_limits={"openai": QueueLimit(max_batches=3)},
    )
    assert looks.execute_in_process(resources={"llm_batch": given}).success
    late = LLMBatchResource.configure_at_launch(command=CommandBatchResource(command=["x"]))
    config = {"resources": {"llm_batch": {"config": {"namespace": "prod"}}}}
    defs = dg.Definitions(jobs=[looks], resources={"llm_batch": late})
    assert defs.resolve_job_def("looks").execute_in_process(run_config=config).success
    by_variable, at_launch = seen
    assert by_variable.openai.base_url == "http://127.0.0.1:1/v1"
    assert by_variable.budgets == [Budget(max_usd=3, period="day")]
    assert at_launch.namespace == "prod"
    assert at_launch.command.command == ["x"]


@table(
    ("wrong", "message"),
    [
        (
            {"prompt": "Label it."},
            "prompt='Label it.' is not allowed; it takes Prompt. Write prompt=Prompt(user='Label it.').",
        ),
        ({"limits": 100}, "it takes Limits or None. Write limits=Limits(max_requests_per_batch=100)."),
        ({"realtime": timedelta(0)}, "Write realtime=Realtime(deadline=datetime.timedelta(0))."),
        ({"resend": 3}, "Write resend=Resend(max_waves=3)."),
        ({"spend": 1.5}, "Write spend=Spend(price=…, expected_output_tokens=…, limit=…)."),
        ({"checks": 0.9}, "Write checks=Checks(min_coverage=0.9)."),
        ({"limits": {"max_requests_per_batch": 3}}, "Write limits=Limits(max_requests_per_batch=…, "),
        ({"keep": "day"}, "Write keep=['day']."),
        ({"owners": "team:a"}, "Write owners=['team:a']."),
        ({"mode": "later"}, "mode='later' is not allowed; it takes 'deferred' or 'wait'."),
        ({"max_cost_usd": True}, "it takes Decimal or float or str or None"),
        ({"tags": {"tier": 1}}, "it takes Mapping[str, str] or None"),
        ({"partitions_def": "daily"}, "it takes PartitionsDefinition or None"),
        ({"backfill_policy": "single_run"}, "it takes BackfillPolicy or None"),
        ({"automation_condition": "eager"}, "it takes AutomationCondition or 'default' or None"),
        ({"required_resource_keys": "warehouse"}, "it takes set[str] or None"),
        ({"rows": 3}, "AssetKey or AssetsDefinition or AssetSpec or a function"),
        ({"prompts": "x"}, "did you mean 'prompt'?"),
        ({"deadline": timedelta(hours=1)}, "there is no argument 'deadline'; write realtime=Realtime(deadline=…)."),
        ({"fallback": ["openai/gpt-5"]}, "there is no argument 'fallback'; write resend=Resend(fallback=…)."),
        ({"system": "x"}, "there is no argument 'system'; write prompt=Prompt(system=…)."),
    ],
)
def test_a_natural_mistake_is_refused_when_definitions_load_with_what_to_write(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        llm_batch_assets(**{**ASKED, **wrong})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Realtime(deadline=3600), "it takes timedelta or None. Write deadline=timedelta(seconds=3600)."),  # type: ignore[arg-type]
        (lambda: Realtime(concurrency="8"), "Realtime.concurrency='8' is not allowed; it takes int"),  # type: ignore[arg-type]
        (lambda: Realtime(concurrency=True), "it takes int"),
        (lambda: Resend(fallback_after=60.5), "Write fallback_after=timedelta(seconds=60.5)."),  # type: ignore[arg-type]
        (lambda: Resend(fallback="openai/gpt-5"), "Write fallback=['openai/gpt-5']."),
        (lambda: Resend(fallback=Fallback("openai/gpt-5")), "Write fallback=[Fallback(model='openai/gpt-5'"),  # type: ignore[arg-type]
        (lambda: Spend(price=1.5), "Write price=TokenPrice(input_usd=…, output_usd=…)."),  # type: ignore[arg-type]
        (lambda: Limits(below_minimum="ask"), "it takes 'refuse' or 'pad' or 'realtime'"),  # type: ignore[arg-type]
    ],
)
def test_a_natural_mistake_in_an_object_is_refused_too(made: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made()
    assert message in str(caught.value)


def test_what_belongs_together_is_one_object() -> None:
    parameters = get_type_hints(llm_batch_assets)
    objects = {"limits": Limits, "realtime": Realtime, "resend": Resend, "spend": Spend, "checks": Checks}
    for name, made in objects.items():
        assert parameters[name] == made | None


def test_what_fits_is_taken_as_it_is() -> None:
    fits: list[dict[str, Any]] = [
        {"max_cost_usd": "0.25"},
        {"max_cost_usd": 3},
        {"max_cost_usd": Decimal(3)},
        {"limits": Limits(max_requests_per_batch=np.int64(100))},  # type: ignore[arg-type]
        {"realtime": Realtime(deadline=timedelta(hours=1))},
        {"keep": ("day",)},
        {"params": types.MappingProxyType({"max_tokens": 3})},
        {"rows": lambda context: context},
        {"rows": dg.AssetKey(["crm", "tickets"])},
        {"rows": ["crm", "tickets"]},
        {"rows": dg.AssetSpec("tickets")},
        {"deps": [dg.AssetKey("raw"), "more"]},
        {"required_resource_keys": ["warehouse"]},
        {"partitions_def": dg.DailyPartitionsDefinition("2026-01-01")},
        {"automation_condition": dg.AutomationCondition.eager()},
        {"resend": Resend(max_waves=1), "checks": Checks(), "spend": Spend(TokenPrice(0.1, "0.2"))},  # type: ignore[arg-type]
    ]
    for one in fits:
        assert len(llm_batch_assets(**{**ASKED, **one})) == 2


@pytest.mark.parametrize("names", [("teams",), ("teams", "others"), ("one", "two", "three"), ["teams"]])
def test_a_tuple_of_any_length_is_taken_where_one_is_declared(names: Any) -> None:
    assert build_llm_batch_alert_sensor(print, sensor_names=names).name == "llm_batch_alert_sensor"
    with pytest.raises(ConfigError, match=r"it takes tuple\[str, \.\.\.\]"):
        build_llm_batch_alert_sensor(print, sensor_names=(1, *names))  # type: ignore[arg-type]


def test_siblings_of_the_other_factories() -> None:
    measured: dict[str, Any] = {"name": "e", "gold": "gold", "candidates": ["labels"], "key": "id", "target": "topic"}
    for wrong, message in (
        ({"candidates": 3}, "candidates=3 is not allowed; it takes str"),
        ({"check_severity": "WARN"}, "Write check_severity=AssetCheckSeverity.WARN."),
        ({"min_accuracy": "0.9"}, "it takes float or AtLeast or Mapping[str, float or AtLeast] or None"),
        ({"kind": "nominal"}, "it takes 'categorical' or 'ordinal' or 'numeric' or Mapping"),
        ({"frame": "spark"}, "it takes 'arrow' or 'polars' or 'pandas' or 'batches'"),
    ):
        with pytest.raises(ConfigError) as caught:
            evaluation_assets(**{**measured, **wrong})
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match=r"Write default_status=DefaultSensorStatus\.STOPPED"):
        build_llm_batch_sensor(default_status="STOPPED")  # type: ignore[arg-type]
    judged: dict[str, Any] = {**ASKED, "candidates": ["a", "b"], "target": "topic"}
    with pytest.raises(ConfigError, match="no argument 'max_inconsistant'; did you mean 'max_inconsistent'"):
        pairwise_judge_assets(**judged, max_inconsistant=0.1)
    with pytest.raises(ConfigError, match="no argument 'max_cots_usd'; did you mean 'max_cost_usd'"):
        rubric_judge_assets(**judged, rubric=Rubric({"a": "b"}), max_cots_usd=3)
    with pytest.raises(ConfigError, match=r"no argument 'deadline'; write realtime=Realtime\(deadline=…\)"):
        pairwise_judge_assets(**judged, deadline=3)


def test_signatures_stay_for_readers_and_tools() -> None:
    assert "prompt: 'Prompt'" in str(inspect.signature(llm_batch_assets))
    assert next(iter(inspect.signature(Prompt).parameters)) == "user"
    assert llm_batch_assets.__doc__ is not None
    assert llm_batch_assets.__module__ == "dagster_llm_batch.assets.factory"


def test_options_that_factories_share_stand_in_each_signature_with_their_defaults() -> None:
    parameters = inspect.signature(evaluation_assets).parameters
    assert {one.kind for one in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters["io_manager_key"].default == "io_manager"
    assert parameters["automation_condition"].default == "default"
    assert get_type_hints(evaluation_assets)["owners"] == Sequence[str]
    with pytest.raises(ConfigError, match="no argument 'frame'; did you mean 'name'"):
        skew_assets(frame="arrow")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Rubric({"reason": "why", "tone": "kind"}), "criteria are reason, tone, and the scale is from 1 to 5"),
        (lambda: Rubric({"tone": "kind"}, min_score={"wit": 1, "form": 2}), "names form, wit; the criteria are"),
        (lambda: dagster_llm_batch.cost_assets(name="costs", by=["day", "day"]), "by=day,day names one thing twice"),
        (
            lambda: dagster_llm_batch.Moderation(["hate", "Hate"]),
            "hate, Hate is not allowed: these would be columns twice: hate,",
        ),
        (lambda: llm_batch_assets(**ASKED | {"response": {"type": "array"}}), "got type 'array' with properties none"),
    ],
)
def test_several_names_are_words_and_no_list_of_python(call: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    assert said in str(caught.value)
