"""An error in `defs.yaml` is reported with its line and the allowed values."""

import re

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from yaml_project import EVAL, evaluation, labels, refusal

from dagster_llm_batch import (
    LLMBatchComponent,
    LLMBatchEvaluationComponent,
    LLMBatchResource,
    OpenAIBatchResource,
    QueueLimit,
)
from dagster_llm_batch.components.scaffolders import BatchParams
from dagster_llm_batch.errors import ConfigError
from tests.tables import table

HEAD = """\
type: dagster_llm_batch.LLMBatchComponent
attributes:
  name: ticket_labels
  rows: tickets
  key: ticket_id
"""


@table(
    ("rest", "line", "message"),
    [
        ('  prompt: "{{ a }}"\n  model: gpt-5', 7, "model='gpt-5' names no provider"),
        ('  prompt: "{{ a }"\n  model: openai/gpt-5', 6, "The user template has a syntax error"),
        ("  model: openai/gpt-5\n  prompt:\n    system: x", 7, "needs `user` (a template) or `user_file`"),
        ("  model: openai/gpt-5\n  prompt:\n    user: x\n    user_file: y", 7, "both `user` and `user_file`"),
        ("  model: openai/gpt-5\n  prompt:\n    user_file: y.md", 8, "y.md' cannot be read"),
        ("  model: openai/gpt-5\n  prompt:\n    user: x\n    images: photo", 7, "images"),
        ("  model: openai/gpt-5\n  prompt: x\n  max_cost_usd: -1", 8, "is no amount of US dollars"),
        ("  model: openai/gpt-5\n  prompt: x\n  resend: {max_waves: 0}", 8, "Resend.max_waves=0 is not allowed"),
        ("  model: openai/gpt-5\n  prompt: x\n  checks:\n    min_coverage: 95", 9, "a share is between 0 and 1"),
        (
            "  model: openai/gpt-5\n  prompt: x\n  limits:\n    below_minimum: pad\n    max_bytes_per_batch: 0",
            10,
            "at least 1",
        ),
        ("  model: openai/gpt-5\n  prompt: x\n  realtime:\n    urgent: x\n    concurrency: many", 10, "it takes int"),
        (
            "  model: openai/gpt-5\n  prompt: x\n  spend:\n    price:\n      input_usd: 1\n      output_usd: free",
            11,
            "is no amount of US dollars",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  resend:\n    fallback: [openai/gpt-5]",
            8,
            "resend.fallback names a model twice",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  realtime: {dead_line: {hours: 2}}",
            8,
            "there is no attribute 'dead_line'; did you mean 'deadline'?",
        ),
        (
            "  model: eu/gpt-5\n  prompt: x\n  resource:\n    providers:\n      eu: {kind: openia, api_key: k}",
            8,
            "'openia' found using 'kind' does not match any of the expected tags: 'command', 'openai'",
        ),
        (
            "  model: eu/gpt-5\n  prompt: x\n  resource:\n    providers:\n      eu: {kind: openai, api_kee: k}",
            8,
            "there is no attribute 'api_kee'; did you mean 'api_key'?",
        ),
        (
            "  model: eu/gpt-5\n  prompt: x\n  resource:\n    providers:\n      e/u: {kind: openai, api_key: k}",
            8,
            "providers has 'e/u', which can be no name of a provider",
        ),
        ("  model: openai/gpt-5\n  prompt: x\n  keep: [ticket_id]", 2, "twice, as key or kept column"),
        ("  model: openai/gpt-5\n  prompt: x\n  mode: later", 8, "it takes 'deferred' or 'wait'"),
        ("  model: openai/gpt-5\n  prompt: x\n  frame: spark", 8, "it takes 'arrow' or 'polars' or 'pandas'"),
        ("  model: openai/gpt-5\n  prompt: x\n  endpoint: talk", 8, "none of 'chat', 'responses', 'embeddings'"),
        ("  model: openai/gpt-5\n  prompt: x\n  response: Label", 8, "'Label' is no import path. Write it as"),
        (
            "  model: openai/gpt-5\n  prompt: x\n  deps: []\n  rows: {function: .schema.TEXT}",
            9,
            "must be a function of",
        ),
        ("  model: openai/gpt-5\n  prompt: x\n  response: .no.Label", 8, "cannot be imported"),
        ("  model: openai/gpt-5\n  prompt: x\n  response: .schema.Labl", 8, "has no 'Labl'"),
        ("  model: openai/gpt-5\n  prompt: x\n  response: .schema.TEXT", 8, "is no response format"),
        ("  model: openai/gpt-5\n  prompt: x\n  response: {type: array}", 8, "must be of type object"),
        (
            "  model: openai/gpt-5\n  prompt: x\n  response: {type: object, properties: {a: {}}, required: [b]}",
            8,
            "requires b, which its properties lack: a",
        ),
        ("  model: openai/gpt-5\n  prompt: x\n  partitions_def:\n    type: daily\n    start_date: soon", 8, "soon"),
        ("  model: openai/gpt-5\n  prompt: x\n  modes: wait", 8, "did you mean 'mode'?"),
        ("  model: openai/gpt-5\n  prompt: {user: x, systm: y}", 7, "did you mean 'system'?"),
        ("  model: openai/gpt-5\n  prompt: x\n  resend: {max_wave: 3}", 8, "did you mean 'max_waves'?"),
        ("  model: openai/gpt-5\n  prompt: x\n  realtime: {deadline: {hour: 3}}", 8, "did you mean 'hours'?"),
        (
            "  model: openai/gpt-5\n  prompt: x\n  resource:\n    openai: {api_key: k}\n    claude: 1",
            8,
            "no attribute 'claude'",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  resource:\n    openai:\n      api_kee: k",
            8,
            "did you mean 'api_key'?",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  resource:\n    ledger_url: postgresql://{{ env.PASSWORD }}@h/d",
            9,
            "PASSWORD must be the whole value",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  resource:\n    budgets:\n      - max_usd: -5",
            10,
            "is no amount of US dollars",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  resource:\n    queue_limits:\n      openai: {max_batches: 0}",
            10,
            "it is at least 1, or left out",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  sensor: {minimum_interval_seconds: -1}",
            8,
            "the first is 0 or more",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  sensor: {max_partitions_per_run: 0}",
            8,
            "the second 1 or more",
        ),
        ("  model: openai/gpt-5\n  prompt: x\n  response: {type: embedding, dimensions: 0}", 8, "it is at least 1"),
        (
            "  model: openai/gpt-5\n  prompt: x\n  resend:\n    fallback_after: soon",
            9,
            "Resend.fallback_after='soon' is not allowed; it takes timedelta",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  realtime: soon",
            8,
            "realtime='soon' is text; it takes Realtime or None, or a template that gives one",
        ),
        ("  model: openai/gpt-5\n  prompt: x\n  metadata: x", 8, "metadata='x' is text"),
        (
            "  model: openai/gpt-5\n  prompt: x\n  automation_condition: eager",
            8,
            "automation_condition='eager' is not allowed; it takes AutomationCondition or 'default' or None",
        ),
        ("  model: openai/gpt-5\n  prompt: x\n  partitions_def: daily", 8, "partitions_def='daily'"),
        ("  model: openai/gpt-5\n  prompt: x\n  backfill_policy: multi_run", 8, "backfill_policy='multi_run'"),
        ("  model: openai/gpt-5\n  prompt: x\n  sensor: maybe", 8, "sensor='maybe' is text"),
        ("  model: openai/gpt-5\n  prompt: x\n  deps: tickets", 8, "deps='tickets' is text"),
        (
            "  model: openai/gpt-5\n  prompt: x\n  deps: [{asset: tickets, metadata: {repeated_keys: first}}]",
            *(8, "deps: repeated_keys='first' of tickets is not allowed; it takes 'refuse' or 'last'"),
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  resend: {max_waves: many}",
            8,
            "max_waves='many' is not allowed",
        ),
        (
            "  model: openai/gpt-5\n  prompt: x\n  automation_condition: '{{ eager() }}'",
            8,
            "'eager' not found in scope",
        ),
    ],
    ids=lambda one: None if isinstance(one, int) else re.sub(r"\W+", " ", str(one))[-40:],
)
def test_a_refusal_names_file_and_line_and_what_is_allowed(rest, line, message):
    files = {"schema.py": "TEXT = 'text'\n"}
    said = refusal(HEAD + rest + "\n", files=files)
    assert message in said
    assert re.search(rf"things/defs.yaml:{line}\b", said), said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": []}, "an evaluation needs at least one"),
        ({"min_accuracy": 90}, "accuracy is between 0 and 1"),
        ({"rejects": {"others": "x"}}, "which are no candidates"),
        ({"target": {"name": "topic", "kind": "numeric", "kappa_weights": "linear"}}, "Remove kappa_weights"),
    ],
)
def test_an_evaluation_that_cannot_work_is_refused_with_its_line(changes, message):
    said = refusal(evaluation(**changes), EVAL)
    assert message in said
    text = yaml.safe_dump({"type": EVAL, "attributes": evaluation(**changes)}, sort_keys=False)
    [attribute] = changes
    line = 1 + next(number for number, one in enumerate(text.splitlines()) if one.startswith(f"  {attribute}:"))
    assert f"things/defs.yaml:{line} " in said, said


def test_a_refusal_does_not_repeat_what_a_variable_holds(monkeypatch):
    monkeypatch.setenv("TIMEOUT", "sk-secret")
    said = refusal(labels(resource={"openai": {"api_key": "k", "timeout_seconds": "{{ env.TIMEOUT }}"}}))
    assert "timeout_seconds" in said
    assert "sk-secret" not in said


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"max_cost_usd": True}, "max_cost_usd"),
        ({"resend": {"max_waves": True}}, "resend.*max_waves"),
        ({"spend": {"price": {"input_usd": True, "output_usd": 1}}}, "input_usd"),
        ({"checks": {"min_coverage": False}}, "min_coverage"),
        ({"realtime": {"urgent": "x", "concurrency": True}}, "concurrency"),
        ({"resource": {"openai": {"api_key": "k", "timeout_seconds": True}}}, "timeout_seconds"),
        ({"resource": {"openai": {"api_key": "k"}, "queue_limits": {"openai": {"max_batches": True}}}}, "max_batches"),
    ],
)
def test_yes_is_no_number(changes, where):
    said = refusal(labels(**changes))
    assert re.search(where, said, re.DOTALL)
    assert "a number is needed, and not" in said


def test_yes_is_no_number_of_a_resource_in_python():
    for make in (
        lambda: OpenAIBatchResource(api_key="k", timeout_seconds=True),
        lambda: QueueLimit(max_batches=True),
        lambda: LLMBatchResource(queue_limits={"openai": {"max_requests": False}}),
    ):
        with pytest.raises(ConfigError, match="is not allowed; it takes a number"):
            make()


def errors(component, **changes):
    """Return errors of the JSON Schema, by the validator that `dg check yaml` uses."""
    schema = component.get_model_cls().model_json_schema()
    base = evaluation() if component is LLMBatchEvaluationComponent else labels()
    found = jsonschema.Draft202012Validator(schema).iter_errors({**base, **changes})
    return sorted((".".join(map(str, one.path)), one.message) for one in found)


@table(
    ("changes", "path", "message"),
    [
        ({"partitions_def": {"type": "daly"}}, "partitions_def.type", "'daly' is not one of ['hourly', 'daily'"),
        ({"partitions_def": {"type": "dynamic"}}, "partitions_def", "'name' is a required property"),
        ({"partitions_def": {"start_date": "2026-01-01"}}, "partitions_def", "'type' is a required property"),
        (
            {"partitions_def": {"type": "multi", "dimensions": {"a": {"type": "static"}}}},
            "partitions_def.dimensions.a",
            "'partition_keys' is a required property",
        ),
        ({"prompt": {"usr": "x"}}, "prompt", "'usr' was unexpected"),
        ({"resource": {"openai": {"api_kee": "k", "api_key": "k"}}}, "resource.openai", "'api_kee' was unexpected"),
        ({"resource": {"gemini": {}}}, "resource.gemini", "'api_key' is a required property"),
        ({"resend": {"waves": 3}}, "resend", "'waves' was unexpected"),
        ({"realtime": {"deadline": {"hour": 3}}}, "realtime.deadline", "'hour' was unexpected"),
        ({"spend": {"price": {"input_usd": 3}}}, "spend.price", "'output_usd' is a required property"),
        ({"response": {"type": "embedding", "size": 3}}, "response", "'size' was unexpected"),
        ({"sensor": {"intervall": 3}}, "sensor", "'intervall' was unexpected"),
        ({"backfill_policy": {"type": "many"}}, "backfill_policy.type", "'many' is not one of"),
        ({"rows": {"function": 3}}, "rows.function", "3 is not of type 'string'"),
        ({"rows": {"sql": "select 1"}}, "rows", "'resource' is a required property"),
        ({"keep": {"a": 1}}, "keep", "is not of type"),
    ],
)
def test_the_json_schema_blames_the_part_and_not_the_block(changes, path, message):
    [(where, said)] = errors(LLMBatchComponent, **changes)
    assert where == path
    assert message in said


@table(
    "changes",
    [
        {"partitions_def": None},
        {"partitions_def": "{{ mine }}"},
        {"prompt": "x"},
        {"response": {"type": "object", "properties": {"a": {}}}},
        {"response": {"type": "embedding"}},
        {"response": ".schema.Label"},
        {"sensor": True},
        {"sensor": {}},
        {"resource": "{{ mine }}"},
        {"resource": {"openai": None, "command": "{{ mine }}"}},
        {"resend": {"max_waves": "{{ waves }}", "fallback": "{{ models }}"}},
        {"realtime": {"deadline": "{{ late }}", "patience": {"minutes": 3}}},
        {"key_prefix": ["a", "b"]},
        {"key_prefix": "a"},
        {"translation": {"key": "x"}},
    ],
)
def test_the_json_schema_still_takes_all_that_is_valid(changes):
    assert errors(LLMBatchComponent, **changes) == []


def test_lists_of_choices_blame_their_part_too():
    [(where, said)] = errors(LLMBatchEvaluationComponent, target=["topic", {"name": "urgency", "kin": "x"}])
    assert where == "target.1"
    assert "'kin' was unexpected" in said


def test_an_option_of_the_scaffolder_that_is_misspelled_is_refused_too():
    assert BatchParams(provider="ray").model is None
    with pytest.raises(ValidationError, match="no attribute 'modle'; did you mean 'model'"):
        BatchParams(provider="openai", modle="gpt-5-nano")
