"""The YAML form of Python declarations: attributes come from signatures, annotations and docstrings.

`FORMS` has the YAML form of each type that YAML lacks. All else follows from annotations: a list for a sequence, a
block for a settings object, a name for a member of an enumeration. A type without a form is refused when a component is
declared, so that every Python argument has a form in YAML.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import dagster as dg
import docstring_parser.google
from pydantic import BeforeValidator, Field, create_model

from dagster_llm_batch.assets.asset_rows import AssetRows
from dagster_llm_batch.assets.file_rows import FileRows
from dagster_llm_batch.assets.rows_context import RowsFunction
from dagster_llm_batch.assets.sql_rows import SqlRows
from dagster_llm_batch.components.partitions import AnyPartitions
from dagster_llm_batch.components.resolution import (
    Block,
    Duration,
    folder_of,
    import_object,
    made,
    pointing_at,
    templated,
)
from dagster_llm_batch.core.cascade import Cascade, Precision, Recall, Rolling
from dagster_llm_batch.core.fixed_responses import Embedding, Moderation
from dagster_llm_batch.core.masks import Masker
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.quoted_columns import Evidence
from dagster_llm_batch.core.response import Response, response_format
from dagster_llm_batch.core.reuse import Near, Relabel, Reuse
from dagster_llm_batch.engine import Limits, Realtime, Resend, Spend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation import AtLeast, Rubric, StopRule
from dagster_llm_batch.evaluation.candidates import Candidates
from dagster_llm_batch.metrics import Target
from dagster_llm_batch.protocols import Workers

__all__ = ["FORMS", "Form", "attributes_of", "block_of", "create_block", "form_of", "shown"]

_REFERENCES = ("See ", "As for ")
"""The beginning of a docstring's text about an argument that is described elsewhere."""


@dataclass(frozen=True)
class Form:
    """The YAML form of values of one type.

    Args:
        kind: Type of the written value. Templates are text, which every attribute takes.
        examples: Examples of written values.
        resolve: Converts the written value.
        note: A note on the written form, if the description of the argument lacks it.
    """

    kind: Any
    examples: Sequence[Any] = ()
    resolve: Callable[[dg.ResolutionContext, Any], Any] = made
    note: str = ""


def _number(given: Any) -> Any:
    """Refuse true and false, which pydantic takes for 1 and 0; YAML reads `yes` as true."""
    if isinstance(given, bool):
        msg = f"a number is needed, and not {str(given).lower()} (YAML reads yes and no as true and false)"
        raise ValueError(msg)  # noqa: TRY004 - what pydantic asks for
    return given


def number_form(annotation: Any) -> Any:
    """Return the annotation; of a number, one that true and false are no values of."""
    return Annotated[annotation, BeforeValidator(_number)] if annotation in (int, float) else annotation


FORMS: dict[Any, Form | None] = {
    dg.AssetKey: None,
    dg.AssetSelection: None,
    dg.AssetSpec: None,
    dg.AssetsDefinition: None,
    Decimal: Form(number_form(float) | str),
    timedelta: Form(Duration),
    Masker: Form(str, ["{{ name_masker }}"], note="In YAML a template variable of yours gives it."),
    Workers: Form(str, ["{{ workers }}"], note="In YAML a template variable of yours gives them."),
    dg.AutomationCondition[Any]: Form(
        str,
        ["{{ dg.AutomationCondition.on_cron('0 2 * * *') }}", "{{ on_labels_ready() }}"],
        note="In YAML a condition is a template.",
    ),
    dg.FreshnessPolicy: Form(
        str,
        ["{{ dg.FreshnessPolicy.time_window(fail_window=datetime.timedelta(hours=30)) }}"],
        note="In YAML it is a template.",
    ),
}
"""The YAML forms of types that YAML lacks; blocks follow below. None: the type has no form, since another attribute has
the same meaning, as the text of a key.
"""


def attributes_of(
    factory: Callable[..., Any],
    *described_in: Any,
    forms: Mapping[Any, Form] | None = None,
    without: Collection[str] = (),
) -> dict[str, tuple[Any, Any]]:
    """Return the arguments of a factory as attributes: annotations with a resolver, and defaults (`Parameter.empty`).

    Args:
        factory: Its docstring describes the arguments.
        described_in: Functions and classes whose docstrings describe arguments that the factory's does not.
        forms: Additional forms, which precede `FORMS`.
        without: Arguments that are not attributes.
    """
    attributes = {}
    for name, argument in _declared(factory, *described_in).items():
        if name in without:
            continue
        form = _form(factory, name, argument.kind, forms)
        resolver = dg.Resolver(
            form.resolve,
            model_field_name=name,
            model_field_type=form.kind,
            description=" ".join(filter(None, [argument.description, form.note])) or None,
            examples=list(form.examples) or None,
            inject_before_resolve=False,
        )
        attributes[name] = (Annotated[argument.kind, resolver], argument.default)
    return attributes


def _form(called: Callable[..., Any], name: str, annotation: Any, forms: Mapping[Any, Form] | None = None) -> Form:
    form = form_of(annotation, {**FORMS, **(forms or {})})
    if form is None:
        raise TypeError(f"{called.__name__}: {name} cannot be written in YAML: {annotation}.")
    return form


def form_of(annotation: Any, known: Mapping[Any, Form | None]) -> Form | None:
    """Return the form of values of this annotation; None without one. Raises TypeError for an unknown annotation."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in known:
        return known[annotation]
    if origin in (Union, UnionType):
        # a key of several parts is written as text, as in `crm/tickets`
        choices = [part for part in parts if not (part == Sequence[str] and dg.AssetKey in parts)]
        return _any_of([form for part in choices if (form := form_of(part, known)) is not None])
    if origin in (Sequence, list, set):
        item = form_of(parts[0], known)
        return item and Form(list[item.kind], [[example] for example in item.examples])  # type: ignore[name-defined]
    if origin in (Mapping, dict):
        item = form_of(parts[1], known)
        return item and Form(dict[str, item.kind])  # type: ignore[name-defined]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return Form(Literal[tuple(member.value for member in annotation)], resolve=_member_of(annotation))
    if isinstance(annotation, type) and is_dataclass(annotation):
        return Form(block_of(annotation))
    if annotation in (Any, bool, int, float, str, NoneType) or origin in (Literal, tuple):
        return Form(number_form(annotation))
    raise TypeError(f"{annotation} has no form in YAML. Add one to FORMS.")


def _any_of(forms: Sequence[Form]) -> Form | None:
    """Return the form of a union. Text can mean something else than itself only where nothing else is a choice."""
    if all(form.kind is NoneType for form in forms):
        return None
    first, *others = [form for form in forms if form.kind is not NoneType]
    return Form(
        Union[tuple(form.kind for form in forms)],  # noqa: UP007 - the choices are computed
        [example for form in forms for example in form.examples],
        made if others else first.resolve,
        " ".join(form.note for form in forms if form.note),
    )


def _member_of(enumeration: type[Enum]) -> Callable[[dg.ResolutionContext, Any], Any]:
    names = {member.value: member for member in enumeration}

    def resolve(context: dg.ResolutionContext, given: Any) -> Any:
        value = templated(context, given)
        return names.get(value, value) if isinstance(value, str) else value

    return resolve


@dataclass(frozen=True)
class _Argument:
    kind: Any
    default: Any
    description: str | None


def _declared(called: Callable[..., Any], *described_in: Any) -> dict[str, _Argument]:
    described = _descriptions(called, *described_in)
    # Dagster's named tuples declare their arguments in `__new__`.
    owner = called.__new__ if isinstance(called, type) and not is_dataclass(called) else called
    kinds = get_type_hints(owner, include_extras=True)
    return {
        name: _Argument(kinds[name], parameter.default, described.get(name))
        for name, parameter in inspect.signature(called).parameters.items()
    }


def _descriptions(*documents: Any) -> dict[str, str]:
    """Return the descriptions of arguments in docstrings, from the part `Args`. An earlier description counts, unless
    it only refers to another ("See …", "As for …").

    Args:
        documents: Functions and classes. A class has the descriptions of its bases, too.
    """
    described: dict[str, str] = {}
    for document in documents:
        for owner in document.__mro__ if isinstance(document, type) else (document,):
            for argument in docstring_parser.google.parse(owner.__doc__).params:
                text = " ".join((argument.description or "").split())
                if not text.startswith(_REFERENCES):
                    for name in argument.arg_name.split(", "):
                        described.setdefault(name, text)
    return described


@cache
def block_of(called: Callable[..., Any]) -> type[Block]:
    """Return the block of settings for this class or function. Every setting can be a template."""
    return create_block(called)


def create_block(
    called: Callable[..., Any],
    base: type[Block] = Block,
    *,
    name: str | None = None,
    templates: bool = True,
    **own: tuple[Any, Any] | None,
) -> type[Block]:
    """Return a block of settings for `called`.

    Args:
        called: The block has its arguments, their defaults and their descriptions.
        base: The base class, which makes the value.
        name: The block's name in the JSON Schema.
        templates: Whether text, from a template, is allowed: `called` refuses it for an argument without text.
        own: Settings of the block itself, or of another type than the argument: type and pydantic's `Field`. None: the
            block lacks the setting.
    """
    fields: dict[str, Any] = {}
    resolvers = {}
    for setting, argument in _declared(called).items():
        if setting in own:
            continue
        form = _form(called, setting, argument.kind)
        # Choices stay the only ones, so that the JSON Schema refuses others.
        is_chosen = any(get_origin(choice) is Literal for choice in (form.kind, *get_args(form.kind)))
        default = ... if argument.default is inspect.Parameter.empty else shown(argument.default)
        described = Field(default, description=argument.description, examples=list(form.examples) or None)
        fields[setting] = (form.kind | str if templates and not is_chosen else form.kind, described)
        resolvers[setting] = form.resolve
    fields |= {setting: field for setting, field in own.items() if field is not None}
    summary = (called.__doc__ or "").split("\n\n")[0]
    block: type[Block] = create_model(name or f"{called.__name__}Settings", __base__=base, __doc__=summary, **fields)
    block.make, block.resolvers = called, resolvers
    return block


def shown(default: Any) -> Any:
    """Return a default as one would write it in YAML."""
    if isinstance(default, Enum):
        return default.value
    if isinstance(default, tuple):
        return list(default)
    if isinstance(default, timedelta):
        hours, rest = divmod(default, timedelta(hours=1))
        return {"minutes": default // timedelta(minutes=1)} if rest else {"hours": hours}
    return default


class FunctionSettings(Block):
    """Rows from a Python function."""

    function: str = Field(
        description="Import path of a function of RowsContext that gives rows.", examples=[".rows.tickets"]
    )

    def value(self, context: dg.ResolutionContext) -> Any:
        """Return the function."""
        with pointing_at(context.at_path("function")):
            function = import_object(context, self.function)
            if not callable(function):
                raise ConfigError(
                    f"{self.function!r} is a {type(function).__name__}; it must be a function of RowsContext."
                )
            return function


class _FileBlock(Block):
    def value(self, context: dg.ResolutionContext) -> Any:
        """Return the rows. A relative path starts at the folder of the YAML file."""
        rows = super().value(context)
        return rows.beside(str(folder_of(context))) if isinstance(rows, FileRows) else rows


class DepSettings(Block):
    """One asset that is read, with how its partitions map."""

    asset: str = Field(description="Key of the asset.")
    partition_mapping: str | None = Field(
        default=None,
        description="A template. Default: Dagster's own.",
        examples=["{{ TimeWindowPartitionMapping(start_offset=-6) }}"],
    )
    metadata: dict[str, Any] | None = Field(
        default=None,
        description=(
            "Settings of the dependency. `allow_missing_partitions`: partitions that are not materialized are left "
            "out, not refused. `repeated_keys: last`: of a key that several partitions have, the row of the last is "
            "taken, not refused."
        ),
        examples=[{"allow_missing_partitions": True, "repeated_keys": "last"}],
    )

    def value(self, context: dg.ResolutionContext) -> dg.AssetDep:
        """Return Dagster's dependency."""
        key = dg.AssetKey.from_user_string(templated(context.at_path("asset"), self.asset))
        mapping = templated(context.at_path("partition_mapping"), self.partition_mapping)
        if isinstance(mapping, str):
            with pointing_at(context.at_path("partition_mapping")):
                raise ConfigError(f"partition_mapping={mapping!r} is text; it takes a template that gives one.")
        return dg.AssetDep(
            key, partition_mapping=mapping, metadata=templated(context.at_path("metadata"), self.metadata)
        )


class Example(Block):
    """A few-shot example."""

    user: str = Field(description="The question, as plain text.")
    reply: str = Field(description="The reply that the model should give.")


class _PromptBlock(Block):
    def value(self, context: dg.ResolutionContext) -> Prompt:
        """Return the prompt. Its templates are for rows: Dagster's templating leaves them alone."""
        given: dict[str, Any] = dict(self)
        mask = made(context.at_path("mask"), given["mask"])
        with pointing_at(context):
            user, system = _text(context, given, "user"), _text(context, given, "system")
            if user is None:
                raise ConfigError("The prompt needs `user` (a template) or `user_file` (a file that holds it).")
            return Prompt(
                user=user,
                system=system,
                images=given["images"],
                image_root=templated(context, given["image_root"]),
                documents=given["documents"],
                file_root=templated(context, given["file_root"]),
                documents_as=given["documents_as"],
                examples=[(example.user, example.reply) for example in given["examples"]],
                cache_prefix=given["cache_prefix"],
                version=templated(context, given["version"]),
                mask=mask,
            )


_FILE = "File with that template, next to this one."
PromptSettings = create_block(
    Prompt,
    _PromptBlock,
    templates=False,
    user=(
        str | None,
        Field(None, description="Jinja template; columns are variables.", examples=["{{ subject }}\n\n{{ body }}"]),
    ),
    user_file=(str | None, Field(None, description=_FILE, examples=["prompt.md.j2"])),
    system_file=(str | None, Field(None, description=_FILE)),
    examples=(list[Example], Field([], description="Few-shot examples, the same for all requests.")),
)


def _prompt(context: dg.ResolutionContext, given: Any) -> Any:
    if isinstance(given, str):
        given = PromptSettings.model_validate({"user": given})
    return made(context, given)


def _text(context: dg.ResolutionContext, given: Mapping[str, Any], part: str) -> str | None:
    inline: str | None = given[part]
    file: str | None = given[f"{part}_file"]
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


EmbeddingSettings = create_block(Embedding, templates=False, type=(Literal["embedding"], ...))
ModerationSettings = create_block(Moderation, templates=False, type=(Literal["moderation"], ...))


def _response(context: dg.ResolutionContext, given: Any) -> Any:
    with pointing_at(context):
        # a JSON Schema is data
        response = given if isinstance(given, Mapping) else made(context, given)
        if isinstance(response, str):
            response = import_object(context, response)
        # refuses here, where the line is known
        response_format(response)
    return response


class SingleRun(Block):
    """One run for all partitions."""

    make = dg.BackfillPolicy.single_run

    type: Literal["single_run"]


class MultiRun(Block):
    """Several runs."""

    make = dg.BackfillPolicy.multi_run

    type: Literal["multi_run"]
    max_partitions_per_run: int = Field(default=1, ge=1, description="Neighbouring partitions that share a run.")


FORMS |= {
    Prompt: Form(
        str | PromptSettings,
        [
            "Summarize in five words: {{ text }}",
            {"system": "You label support tickets.", "user_file": "prompt.md.j2"},
        ],
        _prompt,
        "In YAML a text is the template of the user part.",
    ),
    Response: Form(
        str | EmbeddingSettings | ModerationSettings | dict[str, Any] | None,
        [
            ".schema.TicketLabel",
            {"type": "object", "properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]},
            {"type": "embedding", "dimensions": 256},
            {"type": "moderation"},
        ],
        _response,
        "In YAML it is the import path of a class (`.schema.TicketLabel` is in schema.py in the same folder), a JSON "
        "Schema, `type: embedding`, or `type: moderation`.",
    ),
    RowsFunction: Form(
        FunctionSettings, [{"function": ".rows.tickets"}], note="In YAML `function` is the import path of a function."
    ),
    Candidates: Form(
        str | list[str] | dict[str, str],
        [["ticket_labels"], {"small": "labels/small", "large": "labels/large"}],
        note="In YAML they are keys, or a mapping from names to keys.",
    ),
    AssetRows: Form(block_of(AssetRows), [{"asset": "kinds", "when": "kind == 'invoice'"}]),
    FileRows: Form(
        create_block(FileRows, _FileBlock, name="FileRowsSettings"),
        [{"path": "{{ context.project_root }}/comments.csv"}, {"path": "comments.csv", "partition_column": "day"}],
    ),
    SqlRows: Form(block_of(SqlRows), [{"sql": "select id, body from tickets", "resource": "warehouse"}]),
    Target: Form(
        block_of(Target), [{"name": "urgency", "kappa_weights": "quadratic"}], note="In YAML that is a block."
    ),
    Limits: Form(block_of(Limits), [{"max_requests_per_batch": 10_000}, {"below_minimum": "pad"}]),
    Realtime: Form(
        block_of(Realtime),
        [{"deadline": {"hours": 6}}, {"urgent": "is_vip", "concurrency": 4}, {"urgent": "is_vip", "tier": "flex"}],
    ),
    Near: Form(block_of(Near), [{"text": "body", "target": "topic", "error": 0.02}]),
    Relabel: Form(block_of(Relabel), [{"target": "topic", "share": 0.02}]),
    Reuse: Form(
        block_of(Reuse),
        [{"relabel": {"target": "topic"}}, {"near": {"text": "body", "target": "topic", "similarity": 0.9}}],
    ),
    Resend: Form(
        block_of(Resend),
        [
            {"max_waves": 2},
            {"fallback": [{"model": "anthropic/claude-haiku-4-5", "params": {"max_tokens": 200}}]},
            {"fallback": ["openai/gpt-5-mini"], "fallback_after": {"hours": 2}},
            {"reuse": {"near": {"text": "body", "target": "topic"}}},
            {"reuse": {"relabel": {"target": "topic", "share": 0.02}}},
        ],
    ),
    Rolling: Form(block_of(Rolling), [{"rows": 400, "audit": 0.01}]),
    Precision: Form(block_of(Precision), [{"precision": 0.95}, {"precision": 0.95, "yes": "relevant"}]),
    Recall: Form(block_of(Recall), [{"recall": 0.9}, {"recall": 0.9, "yes": "relevant"}]),
    Cascade: Form(
        block_of(Cascade),
        [
            {"oracle": "anthropic/claude-sonnet-4-5", "target": "topic"},
            {"oracle": "openai/gpt-5", "target": "topic", "agreement": 0.9, "score": "certainty", "sample": 400},
            {"oracle": "openai/gpt-5", "target": "topic", "gold": "ticket_gold", "within": 0.03},
            {"oracle": "openai/gpt-5", "target": "topic", "calibrate": {"rows": 400, "audit": 0.01}},
            {"oracle": "openai/gpt-5", "target": "is_complaint", "guarantee": {"precision": 0.95}},
            {"oracle": "openai/gpt-5", "target": "kind", "guarantee": {"recall": 0.9, "yes": "relevant"}},
        ],
    ),
    Evidence: Form(
        block_of(Evidence),
        [{"quotes": {"quote": "text"}}, {"quotes": {"claims.quote": "text"}, "min_score": 0.9, "reject_missing": True}],
    ),
    AtLeast: Form(block_of(AtLeast), [{"least": 0.9, "confidence": 0.95}, {"least": 0.9, "on": "labeled"}]),
    StopRule: Form(block_of(StopRule), [{"half_width": 0.02}, {"half_width": 0.05, "figure": "kappa"}]),
    Rubric: Form(block_of(Rubric), [{"criteria": {"right": "Is it what the text is about?"}, "scale": [1, 3]}]),
    Spend: Form(block_of(Spend), [{"expected_output_tokens": 50}]),
    dg.PartitionsDefinition[Any]: Form(
        AnyPartitions, [{"type": "daily", "start_date": "2026-01-01"}, {"type": "dynamic", "name": "customers"}]
    ),
    dg.BackfillPolicy: Form(
        Annotated[SingleRun | MultiRun, Field(discriminator="type")],
        [{"type": "multi_run", "max_partitions_per_run": 10}],
    ),
    dg.AssetDep: Form(
        DepSettings,
        [{"asset": "tickets", "partition_mapping": "{{ TimeWindowPartitionMapping(start_offset=-6) }}"}],
    ),
    dg.RetryPolicy: Form(
        create_block(dg.RetryPolicy, templates=False), [{"max_retries": 3, "delay": 60, "backoff": "EXPONENTIAL"}]
    ),
}
