"""Blocks of settings in YAML, and what they become: prompt, rows, response, policies, price, sensor, targets."""

from collections.abc import Mapping
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from dagster_llm_batch.checks import Checks
from dagster_llm_batch.components.resolution import (
    Block,
    Duration,
    MadeBlock,
    block,
    folder_of,
    import_object,
    pointing_at,
    templated,
)
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.response import Embedding, response_format
from dagster_llm_batch.engine import Fallback, Limits, Realtime, Resend, Spend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import Target
from dagster_llm_batch.metrics.columns import Kind
from dagster_llm_batch.sensors import build_llm_batch_sensor

__all__ = ["CHECKS", "LIMITS", "PROMPT", "REALTIME", "RESEND", "RESPONSE", "ROWS", "SENSOR", "SPEND", "TARGET"]


class RowsFunction(Block):
    """Rows from a Python function."""

    function: str = Field(
        description="Import path of a function of RowsContext that gives rows.", examples=[".rows.tickets"]
    )


class Example(Block):
    """A few-shot example."""

    user: str = Field(description="What is asked, as plain text.")
    reply: str = Field(description="What the model should reply.")


class PromptSettings(Block):
    """What is asked about each row. Templates are for rows: Dagster's own templating leaves them alone."""

    user: str | None = Field(
        default=None, description="Jinja template; columns are variables.", examples=["{{ subject }}\n\n{{ body }}"]
    )
    user_file: str | None = Field(
        default=None, description="File with that template, beside this one.", examples=["prompt.md.j2"]
    )
    system: str | None = Field(default=None, description="Jinja template of the system part.")
    system_file: str | None = Field(default=None, description="File with that template, beside this one.")
    images: list[str] = Field(default=[], description="Columns that hold images: bytes, an http(s) URL, or a path.")
    image_root: str | None = Field(default=None, description="Where path columns are looked up. Default: refused.")
    examples: list[Example] = Field(default=[], description="Few-shot examples, the same for all requests.")
    cache_prefix: bool = Field(default=False, description="Mark system part and examples for prompt caching.")
    version: str | None = Field(
        default=None, description="A name for this wording, kept with every row. Default: a digest."
    )


class EmbeddingSettings(Block):
    """Ask for a vector instead of a reply."""

    type: Literal["embedding"]
    dimensions: int | None = Field(default=None, description="Length of the vector. Default: the model's.")


class LimitsSettings(MadeBlock):
    """How large a batch may be, and what to do with one that is too small."""

    make = Limits

    max_requests_per_batch: int | str | None = Field(
        default=None, description="Most requests in one batch. Default: as many as the provider takes."
    )
    max_bytes_per_batch: int | str | None = Field(
        default=None, description="Largest request file of one batch, in bytes. Default: what the provider takes."
    )
    below_minimum: Literal["refuse", "pad", "realtime"] = Field(
        default="refuse", description="What to do with fewer requests than the provider's least number for a batch."
    )


class RealtimeSettings(MadeBlock):
    """What is answered in real time, at its price, and how."""

    make = Realtime

    deadline: Duration | str | None = Field(
        default=None,
        description="How long batches may take; what none has answered then is answered in real time.",
        examples=[{"hours": 6}],
    )
    urgent: str | None = Field(
        default=None, description="Boolean column of the rows: where it is true, a row is answered in real time."
    )
    concurrency: int | str = Field(default=8, description="How many calls run at once.")
    patience: Duration | str = Field(
        default=Duration(minutes=5),
        description="How long calls may wait in all for a provider that turns them away; then a later run asks.",
    )


class ChecksSettings(MadeBlock):
    """What a labeled partition must hold."""

    make = Checks

    min_coverage: float | str = Field(default=0.95, description="Least share of rows with a label, 0 to 1.")
    min_parse_rate: float | str = Field(default=0.95, description="Least share of replies that fit, 0 to 1.")
    blocking: bool | str = Field(default=True, description="Whether a failed one holds back what is downstream.")


class PriceSettings(MadeBlock):
    """Your own price, in US dollars per million tokens."""

    make = TokenPrice

    input_usd: float | str = Field(description="Of input, in a batch.", examples=["0.02"])
    output_usd: float | str = Field(description="Of output, in a batch.", examples=["0.15"])
    realtime_input_usd: float | str | None = Field(default=None, description="In real time. Default: twice as much.")
    realtime_output_usd: float | str | None = Field(default=None, description="In real time. Default: twice as much.")


class FallbackSettings(MadeBlock):
    """Another model, with settings of its own."""

    make = Fallback

    model: str = Field(description="Provider, and its own name for the model.", examples=["anthropic/claude-haiku-4-5"])
    params: dict[str, Any] | None = Field(default=None, description="Its parameters. Default: those of the dataset.")
    endpoint: str | None = Field(default=None, description="Which API of that provider. Default: as for the dataset.")
    price: PriceSettings | str | None = Field(default=None, description="Your own price of it.")


class ResendSettings(MadeBlock):
    """Which requests are sent again, how often, and to which model then. Only those that can succeed ever are."""

    make = Resend

    max_waves: int | str = Field(default=3, description="How often a request may be sent in all to one model.")
    invalid_waves: int | str = Field(
        default=2, description="How often one whose reply did not fit, and was paid for, may be sent in all."
    )
    fallback: list[str | FallbackSettings] | str = Field(
        default=[],
        description="Models, in this order, for requests that the one before refuses or gives no good answer to.",
        examples=[
            ["anthropic/claude-haiku-4-5"],
            [{"model": "gemini/gemini-2.5-flash", "params": {"max_tokens": 200}}],
        ],
    )
    fallback_after: Duration | str = Field(
        default=Duration(hours=1), description="How long a provider may be down before the next model is asked."
    )
    former_names: list[str] | str = Field(
        default=[], description="Assets that this one was before: what was submitted as one of them is taken over."
    )


class SpendSettings(MadeBlock):
    """What requests are taken to cost."""

    make = Spend

    price: PriceSettings | str | None = Field(
        default=None,
        description="Your own price, for models that the price book lacks or a negotiated rate.",
        examples=[{"input_usd": "0.02", "output_usd": "0.15"}],
    )
    expected_output_tokens: int | str | None = Field(
        default=None, description="Tokens of one reply, for the estimate. Default: the most that `params` allow."
    )


class SensorSettings(Block):
    """The sensor that polls batches and lands labels."""

    name: str = Field(default="llm_batch_sensor", description="Its name.")
    minimum_interval_seconds: int | str = Field(default=30, description="Between two ticks.")
    default_status: Literal["RUNNING", "STOPPED"] = Field(
        default="RUNNING", description="Until somebody starts or stops it in the UI."
    )
    max_partitions_per_run: int | str = Field(default=100, description="Ready partitions that land in one run.")
    run_config: dict[str, Any] | None = Field(
        default=None, description="Of the runs it asks for. Default: in the run's own process, as it is fastest."
    )
    run_tags: dict[str, str] | None = Field(default=None, description="Tags of those runs.")


class TargetSettings(Block):
    """One column to evaluate."""

    name: str = Field(description="Column of the candidates, and of gold unless `gold_column` says otherwise.")
    gold_column: str | None = Field(default=None, description="What gold calls it.")
    kind: Kind = Field(default="categorical", description="Classes, or measurements.")
    kappa_weights: Literal["linear", "quadratic"] | None = Field(
        default=None, description="For integer classes whose distance means something. Default: all alike."
    )
    confidence_column: str | None = Field(
        default=None, description="Column of the candidates with the probability that the label is correct."
    )


def _rows(context: dg.ResolutionContext, given: Any) -> Any:
    if isinstance(given, RowsFunction):
        with pointing_at(context.at_path("function")):
            function = import_object(context, given.function)
            if not callable(function):
                raise ConfigError(
                    f"{given.function!r} is a {type(function).__name__}; it must be a function of RowsContext."
                )
            return function
    return templated(context, given)


def _prompt(context: dg.ResolutionContext, given: str | PromptSettings) -> Prompt:
    settings = PromptSettings(user=given) if isinstance(given, str) else given
    with pointing_at(context):
        user, system = _text(context, settings, "user"), _text(context, settings, "system")
        if user is None:
            raise ConfigError("The prompt needs `user` (a template) or `user_file` (a file that holds it).")
        return Prompt(
            user=user,
            system=system,
            images=settings.images,
            image_root=templated(context, settings.image_root),
            examples=[(example.user, example.reply) for example in settings.examples],
            cache_prefix=settings.cache_prefix,
            version=templated(context, settings.version),
        )


def _text(context: dg.ResolutionContext, settings: PromptSettings, part: str) -> str | None:
    inline: str | None = getattr(settings, part)
    file: str | None = getattr(settings, f"{part}_file")
    if inline is not None and file is not None:
        raise ConfigError(f"The prompt has both `{part}` and `{part}_file`. Keep one of them.")
    if file is None:
        return inline
    with pointing_at(context.at_path(f"{part}_file")):
        path = folder_of(context) / file
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The prompt file {str(path)!r} cannot be read: {error}") from error


def _response(context: dg.ResolutionContext, given: Any) -> Any:
    with pointing_at(context):
        if isinstance(given, EmbeddingSettings):
            return Embedding(given.dimensions)
        # a JSON Schema is data
        response = templated(context, given) if isinstance(given, str) else given
        if isinstance(response, str):
            response = import_object(context, response)
        # refuses here, where the line is known
        response_format(response)
    return response


def _sensor(context: dg.ResolutionContext, given: Any) -> Mapping[str, Any] | bool | None:
    if not isinstance(given, SensorSettings):
        return given  # type: ignore[no-any-return]
    settings: dict[str, Any] = templated(context, given.model_dump(exclude_unset=True))
    if "default_status" in settings:
        settings["default_status"] = dg.DefaultSensorStatus(settings["default_status"])
    with pointing_at(context):
        # a wrong number is refused at its line
        build_llm_batch_sensor(**settings)
    return settings


def _target(context: dg.ResolutionContext, given: Any) -> Any:
    if isinstance(given, list | tuple):
        return [_target(context.at_path(index), target) for index, target in enumerate(given)]
    if isinstance(given, TargetSettings):
        with pointing_at(context):
            return Target(**given.model_dump())
    return templated(context, given)


ROWS = dg.Resolver(
    _rows,
    model_field_type=str | RowsFunction,
    description="Key of the upstream asset whose rows are labeled, or a function that gives them.",
    examples=["crm/tickets", {"function": ".rows.tickets"}],
)
PROMPT = dg.Resolver(
    _prompt,
    model_field_type=str | PromptSettings,
    description="What is asked about each row; a text is the template of the user part.",
    examples=[
        "Summarize in five words: {{ text }}",
        {"system": "You label support tickets.", "user_file": "prompt.md.j2"},
    ],
    inject_before_resolve=False,
)
RESPONSE = dg.Resolver(
    _response,
    model_field_type=str | EmbeddingSettings | dict[str, Any] | None,
    description=(
        "What a reply must look like: the import path of a pydantic model, a JSON Schema of type object, or "
        "`type: embedding`. Default: free text."
    ),
    examples=[
        ".schema.TicketLabel",
        {"type": "object", "properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]},
        {"type": "embedding", "dimensions": 256},
    ],
    inject_before_resolve=False,
)
SENSOR = dg.Resolver(
    _sensor,
    model_field_type=SensorSettings | bool | None,
    description="The sensor that lands labels when batches end. Default: there is one where `resource` is given.",
    examples=[{"minimum_interval_seconds": 60}, False],
)
LIMITS = block(
    LimitsSettings,
    "How large a batch may be, and what to do with one that is too small.",
    {"max_requests_per_batch": 10_000},
    {"below_minimum": "pad"},
)
REALTIME = block(
    RealtimeSettings,
    "What is answered in real time, at its price, and how.",
    {"deadline": {"hours": 6}},
    {"urgent": "is_vip", "concurrency": 4},
)
RESEND = block(
    ResendSettings,
    "What is sent again, how often, and to which model then.",
    {"max_waves": 2},
    {"fallback": ["anthropic/claude-haiku-4-5"], "fallback_after": {"hours": 2}},
)
SPEND = block(
    SpendSettings,
    "What requests are taken to cost.",
    {"expected_output_tokens": 50},
    {"price": {"input_usd": "0.02", "output_usd": "0.15"}},
)
CHECKS = block(ChecksSettings, "Least coverage and parse rate.", {"min_coverage": 0.99})
TARGET = dg.Resolver(
    _target,
    model_field_type=str | TargetSettings | list[str | TargetSettings],
    description="Column, or columns, to compare.",
    examples=["topic", ["topic", {"name": "urgency", "kappa_weights": "quadratic"}]],
)
