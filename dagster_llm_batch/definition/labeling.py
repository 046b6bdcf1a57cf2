"""The declaration of a labeled dataset, free of Dagster: how rows become requests, and which are asked again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from functools import cached_property, partial
from types import UnionType
from typing import Any, Literal

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.cascade import Cascade, Precision, Recall, Rolling
from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.json_schema import without_notes
from dagster_llm_batch.core.label_join import check_columns
from dagster_llm_batch.core.logprobs import INCLUDED_LOGPROBS, LOGPROB, asks_logprobs
from dagster_llm_batch.core.masks import Mask, mask_as_of
from dagster_llm_batch.core.pricing import TokenPrice, dollars
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.quoted_columns import Evidence, QuotedColumns
from dagster_llm_batch.core.response import Reader, Response, StoredResponse
from dagster_llm_batch.core.reuse import Near, Relabel, Reuse
from dagster_llm_batch.core.token_counts import MAXIMA, given_settings
from dagster_llm_batch.definition.settings import Fallback, Limits, Realtime, Resend, Spend
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.protocols import Workers
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.registry import logprob_params, needs_max_tokens
from dagster_llm_batch.types import Endpoint, RequestSpec, ResponseFormat, ResponseKind

__all__ = ["EmptyRows", "Fallback", "Labeling", "Limits", "Realtime", "Resend", "Spend", "promises_in"]

EmptyRows = Literal["skip", "ask"]

_NOTHING_REUSED = Reuse()

# Settings that do not go with near copies, with the reason.
_WHY_NOT_NEAR = {
    "realtime": "copies wait for two rounds of batches; label urgent rows in a dataset of their own",
    "workers": "one process groups all texts; it groups a million in two minutes",
    "Prompt.images or Prompt.documents": "texts are compared, and files are not",
}

# The same of older labels: only settings with which the guarantee itself would fail have a reason.
_WHY_NOT_RELABEL = {"realtime": "the other rows wait for two rounds of batches"}


# Names, kinds and least values of numeric parameters, each with a description and an example for messages.
_NUMBERS: tuple[tuple[Sequence[str], type | UnionType, float, str, str], ...] = (
    (MAXIMA, int, 1, "the most tokens of a reply, a whole number (int) from 1 on", "1024"),
    (("temperature", "top_p", "topP"), int | float, -math.inf, "a number (int or float)", "0.5"),
)

# Responses that exist at one endpoint only.
_ENDPOINTS = {ResponseKind.EMBEDDING: Endpoint.EMBEDDINGS, ResponseKind.MODERATION: Endpoint.MODERATIONS}


@checked
@dataclass(frozen=True)
class Labeling:
    """One labeled dataset.

    Args:
        asset: Name of the dataset. A submission is for this dataset, or a partition of it.
        model: The provider, a slash, and the provider's own name for the model, as in "openai/gpt-5-nano" or
            "command/smollm2".
        key: Column that identifies a row.
        prompt: The question about each row.
        response: The form of a reply: a pydantic model class, a JSON Schema of type object, an embedding, or
            a moderation. Default: free text.
        params: Parameters that are passed to the provider unchanged (temperature, max_tokens, …).
        endpoint: API of the provider. Default: "embeddings" for an embedding, "moderations" for a moderation,
            else "chat".
        keep: More columns of the rows to carry into the labeled table.
        empty: The handling of a row in which all columns that the prompt reads (except the key) are null or blank.
            "skip" neither sends it nor pays for it, and rejects it with the outcome `skipped`. "ask" sends it.
        max_cost_usd: The most to be billed for a submission, including retries, in US dollars. A submission with a
            higher estimate is rejected. Others are sent in steps that keep to the limit: see `spend`.
        limits: Limits for the size of a batch, and the handling of batches that are too small.
        realtime: Requests to answer in real time, at its price. Default: none.
        resend: Rules for retries and fallback models.
        spend: Prices and tokens for estimates. Default: the price book's.
        cascade: A more expensive model that answers the rows of which this one is not sure enough. The cascade
            guarantees how many labels agree with that model. Default: none.
        workers: Machines that render, encode and write the requests, and read the results, instead of this process:
            `SparkWorkers` or `RayWorkers`. The result is the same.
        evidence: Fields of the response that quote a column of the rows: the labeled table has the place of each quote.
            Default: none.
        tags: Tags for attributing the cost, as in {"team": "support"}: `dagster-llm-batch cost --by tag:team` sums by
            it. They are stored with each submission when it is opened, and do not affect requests.

    `near` and `relabel` have the settings of near copies and of older labels (`Resend.reuse`), and `audited` has the
    one of them that is given; None without them.
    """

    asset: str
    model: str
    key: str
    prompt: Prompt
    response: Response = None
    params: Mapping[str, Any] = field(default_factory=dict)
    endpoint: Endpoint | str | None = None
    keep: Sequence[str] = ()
    empty: EmptyRows = "skip"
    max_cost_usd: Decimal | float | str | None = None
    limits: Limits = field(default_factory=Limits)
    realtime: Realtime = field(default_factory=Realtime)
    resend: Resend = field(default_factory=Resend)
    spend: Spend = field(default_factory=Spend)
    cascade: Cascade | None = None
    workers: Workers | None = None
    evidence: Evidence | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    near: Near | None = field(init=False, repr=False)
    relabel: Relabel | None = field(init=False, repr=False)
    audited: Near | Relabel | None = field(init=False, repr=False)

    def __reduce__(self) -> Any:
        """Pickle only the declared fields; the others are computed again. `workers` is dropped: workers need none."""
        declared = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        return partial(Labeling, **{**declared, "workers": None}), ()

    def __post_init__(self) -> None:
        # Attributes, since each step of a submission looks at them.
        reuse = self.resend.reuse or _NOTHING_REUSED
        for name, setting in (
            ("near", reuse.near),
            ("relabel", reuse.relabel),
            ("audited", reuse.near or reuse.relabel),
        ):
            object.__setattr__(self, name, setting)
        provider, slash, model = self.model.partition("/")
        if not (provider and slash and model):
            msg = f"model={self.model!r} names no provider. Write it as provider/model, as in 'openai/gpt-5-nano'."
            raise ConfigError(msg)
        check_columns(self.key, self.keep, self.reader.schema.names)
        if self.mask is not None:
            self.mask.check(self.key, self.prompt.images, self.reader.schema, self.prompt.documents)
            self._check_masked_texts()
        if self.cascade is not None:
            self._check_cascade(self.cascade)
        if self.audited is not None:
            self._check_audited(self.audited)
        # Computed now, so that errors in them are raised where the dataset is declared.
        _ = self.spec, self.budget_usd, self.models, self.quoted_columns

    def _check_masked_texts(self) -> None:
        if self.prompt.documents_as == "text":
            raise ConfigError(
                f"Prompt.mask does not go with documents_as='text': the text of {', '.join(self.prompt.documents)} "
                "would be sent unmasked. Make a column of the text in the asset of the rows, and mask that."
            )

    def _check_cascade(self, cascade: Cascade) -> None:
        if cascade.score == LOGPROB.name and logprob_params(self.model) is None:
            raise ConfigError(
                f"Cascade.score={LOGPROB.name!r} is the model's own probability of its label, which {self.model} does "
                "not report. Use a model that reports it, such as OpenAI's gpt-4.1 family and vLLM. Or give the "
                "response a field such as `confidence: float`, and name that."
            )
        cascade.check_response(self.reader, self.result_schema)
        if self.resend.fallback:
            raise ConfigError(
                "resend.fallback does not go with cascade: the oracle answers the rows that the model does not. "
                f"Another model instead of {cascade.oracle} would void the guarantee. Leave resend.fallback out."
            )
        if self.realtime.otherwise == "batch":
            raise ConfigError(
                "Realtime(otherwise='batch') does not go with cascade: the model of a cascade is asked once, so what "
                f"the tier 'flex' turns away would be paid at {cascade.oracle}. Leave otherwise out: then the standard "
                "tier answers it."
            )

    def _check_audited(self, audited: Near | Relabel) -> None:
        audited.check_response(self.reader)
        how, standard = self.realtime, Realtime()
        is_realtime = (how.urgent, how.deadline, how.tier) != (standard.urgent, standard.deadline, standard.tier)
        is_near = isinstance(audited, Near)
        others = {
            "realtime": is_realtime,
            "resend.fallback": bool(self.resend.fallback) and not is_near,
            "workers": self.workers is not None,
            "checks.evidence": self.evidence is not None and not is_near,
            "Prompt.mask": self.mask is not None and not is_near,
            "Prompt.images or Prompt.documents": bool(self.prompt.files),
        }
        kind, reasons = "relabel", _WHY_NOT_RELABEL
        without = "Without it, a changed definition asks all rows again."
        if isinstance(audited, Near):
            kind, reasons = "near", _WHY_NOT_NEAR
            without = "Rows with equal requests share an answer without it."
            audited.contexts_in(self.prompt, self.key)
        if self.cascade is not None:
            audited.check_cascade(self.cascade)
        if named := [name for name, is_given in others.items() if is_given]:
            whys = [f"{name} ({reasons[name]})" if name in reasons else name for name in named]
            raise ConfigError(
                f"Resend(reuse=Reuse({kind}=…)) does not go with {', '.join(whys)}. Leave one of them out. {without}"
            )
        if self.near is not None and self.near.vectors is None:
            from dagster_llm_batch.core.near_copies import refuse_missing_library  # noqa: PLC0415 - few labelings do

            refuse_missing_library()

    @cached_property
    def models(self) -> tuple[Labeling, ...]:
        """The labeling itself, then one for each further model: the oracle of its cascade, or its fallbacks."""
        fallbacks = [Fallback(fallback) if isinstance(fallback, str) else fallback for fallback in self.resend.fallback]
        where, line = "resend.fallback", "resend=Resend(fallback=[Fallback({model!r}, params={params})])"
        if self.cascade is not None:
            where, oracle = "cascade.oracle", self.cascade
            line = "cascade=Cascade(oracle={model!r}, params={params}, …)"
            fallbacks = [Fallback(oracle.oracle, oracle.params, price=oracle.price)]
        _check_params("params", self.model, self.params, "params={params}")
        for fallback in fallbacks:
            params = self.params if fallback.params is None else fallback.params
            _check_params(f"{where} {fallback.model}: params", fallback.model, params, line)
        labelings = (
            self,
            *(
                replace(
                    self,
                    model=fallback.model,
                    params=self.params if fallback.params is None else fallback.params,
                    endpoint=fallback.endpoint or self.endpoint,
                    resend=replace(self.resend, fallback=()),
                    cascade=None,
                    spend=replace(self.spend, price=fallback.price),
                )
                for fallback in fallbacks
            ),
        )
        names = [labeling.model for labeling in labelings]
        if len(set(names)) < len(names):
            msg = f"{where} names a model twice, or the one that it shall replace: {', '.join(names)}."
            raise ConfigError(msg)
        return labelings

    def by(self, model: str) -> Labeling:
        """Return the labeling for one of its models. Raises ConfigError for another model."""
        for labeling in self.models:
            if labeling.model == model:
                return labeling
        known = ", ".join(labeling.model for labeling in self.models)
        msg = (
            f"'{self.asset}' has requests at {model}, which is neither its model nor a fallback any more: {known}. "
            "Put it back into Resend(fallback=…) until they are complete."
        )
        raise ConfigError(msg)

    @property
    def mask(self) -> Mask | None:
        return self.prompt.mask

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]

    @cached_property
    def reader(self) -> Reader:
        return Reader(self.response)

    @cached_property
    def quoted_columns(self) -> QuotedColumns | None:
        """The columns that evidence adds to labels. They are no part of what is asked, or of stored results."""
        evidence = self.evidence
        if evidence is None:
            return None
        return QuotedColumns(evidence, self.key, self.keep, self.reader.schema, self.prompt.documents)

    @property
    def label_columns(self) -> list[str]:
        """The columns of labels, but for those of a cascade and provenance."""
        quoted = [] if self.quoted_columns is None else self.quoted_columns.schema.names
        return [self.key, *self.keep, *self.reader.schema.names, *quoted]

    @cached_property
    def result_schema(self) -> pa.Schema:
        """The columns of a reply: the response's columns, and LOGPROB if this model or a fallback is asked for it.

        The column is null for a model that is not asked.
        """
        has_logprob = any(asks_logprobs(labeling.spec) for labeling in self.models)
        return pa.schema([*self.reader.fields, *([LOGPROB] if has_logprob else [])])

    @cached_property
    def spec(self) -> RequestSpec:
        """The part that all requests share."""
        needed = _ENDPOINTS.get(self.reader.format.kind)
        default = needed or Endpoint.CHAT
        try:
            endpoint = default if self.endpoint is None else Endpoint(self.endpoint)
        except ValueError as error:
            msg = f"endpoint={self.endpoint!r} is none of {', '.join(repr(e.value) for e in Endpoint)}."
            raise ConfigError(msg) from error
        if endpoint is not needed and (needed is not None or endpoint in _ENDPOINTS.values()):
            msg = f"endpoint={endpoint.value!r} does not go with a response of kind {self.reader.format.kind.value!r}."
            raise ConfigError(msg)
        if needed is not None and (self.prompt.system or "").strip():
            images = ", and images" if needed is Endpoint.MODERATIONS else ""
            raise ConfigError(
                f"{needed.value.capitalize()} take one text{images}; the prompt has a system text. "
                "Leave only its user part."
            )
        if needed is not None and self.prompt.documents:
            raise ConfigError(
                f"{needed.value.capitalize()} take no documents; the prompt names {', '.join(self.prompt.documents)}. "
                "Leave documents out, or ask a model that replies."
            )
        provider = self.model.partition("/")[0]
        # A provider with a preset's name uses that preset.
        if (server := SERVERS.get(provider)) is not None and endpoint is not Endpoint.CHAT:
            from dagster_llm_batch.providers.openai_api.requests import check_endpoint  # noqa: PLC0415 - for few endpoints

            check_endpoint(server, endpoint)
        return RequestSpec(
            model=self.model.partition("/")[2],
            response=self.reader.format,
            endpoint=endpoint,
            params=self._asked_params(endpoint),
            turns=self.prompt.turns,
            cache_prefix=self.prompt.cache_prefix,
        )

    def _asked_params(self, endpoint: Endpoint) -> dict[str, Any]:
        """Return the parameters, with those that request logprobs if they are the score of a cascade."""
        given = dict(self.params)
        if self.cascade is None or self.cascade.score != LOGPROB.name or endpoint in _ENDPOINTS.values():
            return given
        if endpoint is Endpoint.RESPONSES:
            included = [*given.get("include", ())]
            return {**given, "include": [*included, *([] if INCLUDED_LOGPROBS in included else [INCLUDED_LOGPROBS])]}
        return {**(logprob_params(self.model) or {}), **given}

    @cached_property
    def budget_usd(self) -> Decimal | None:
        if self.max_cost_usd is None:
            return None
        return dollars("max_cost_usd", self.max_cost_usd)

    @cached_property
    def prompt_version(self) -> str:
        """The prompt's name, or a digest of its wording."""
        prompt = self.prompt
        return prompt.version or _digest(
            [
                prompt.system,
                prompt.user,
                list(prompt.images),
                [list(e) for e in prompt.examples],
                *prompt.asked_documents,
            ]
        )

    @property
    def columns_read(self) -> set[str] | None:
        """The columns of the rows that planning reads, or None if the prompt takes whole rows."""
        names = self.prompt.names()
        more = [*([self.realtime.urgent] if self.realtime.urgent else []), *(self.mask.columns if self.mask else [])]
        return None if names is None else {self.key, *self.keep, *more, *names}

    @property
    def columns_of_nothing(self) -> pa.Schema:
        """The schema to assume for rows that came without any column."""
        names = dict.fromkeys([self.key, *self.keep, *sorted(self.prompt.columns() or ())], pa.string())
        urgent = {self.realtime.urgent: pa.bool_()} if self.realtime.urgent else {}
        return pa.schema(list((names | urgent).items()))

    @cached_property
    def definition(self) -> Mapping[str, Any]:
        """The definition to store with a submission, as JSON: the requests, and how answers become rows of the table.

        `Labeling.as_of` restores a labeling from it. Manifests contain it, so a name in it never changes its meaning.
        """
        spec, prompt, response = self.spec, self.prompt, self.spec.response
        asked = {
            "model": self.model,
            "endpoint": spec.endpoint.value,
            "params": spec.params,
            "prompt": {
                "system": prompt.system,
                "user": prompt.user,
                "images": list(prompt.images),
                "examples": [list(example) for example in prompt.examples],
                "cache_prefix": prompt.cache_prefix,
                **({"documents": list(prompt.documents)} if prompt.documents else {}),
                **({"documents_as": "text"} if prompt.documents_as == "text" else {}),
            },
            "response": {
                "kind": response.kind.value,
                "name": response.name,
                "json_schema": response.json_schema,
                "dimensions": response.dimensions,
            },
        }
        content = {
            "asked": asked,
            "columns": self.reader.columns_schema,
            "prompt_version": self.prompt_version,
            "key": self.key,
            "keep": list(self.keep),
            "price": _price_as_json(self.spend.price),
            "fallback": [
                {
                    "model": fallback.model,
                    "params": fallback.params,
                    "endpoint": fallback.spec.endpoint.value,
                    "price": _price_as_json(fallback.spend.price),
                }
                for fallback in self.models[1:]
                if self.cascade is None
            ],
        }
        if self.mask is not None:
            asked["mask"] = self.mask.settings()
        if (cascade := self.cascade) is not None:
            # The source of the gold does not affect the requests.
            rolling = {"calibrate": asdict(cascade.calibrate)} if isinstance(cascade.calibrate, Rolling) else {}
            filters = {} if cascade.guarantee is None else {"guarantee": asdict(cascade.guarantee)}
            asked["cascade"] = {**cascade.settings(), "price": _price_as_json(cascade.price), **rolling, **filters}
        if self.near is not None:
            asked["near"] = self.near.settings()
        if self.relabel is not None:
            asked["relabel"] = asdict(self.relabel)
        # The same form as after reading it: tuples become lists, and values that JSON lacks become text.
        definition: Mapping[str, Any] = json.loads(json.dumps(content, default=str))
        return definition

    def definition_after(self, older: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return the definition that replaces an older one with the same requests.

        It includes the fallbacks of the older one: a fallback that is no longer declared may still answer.
        """
        if older is None:
            return self.definition
        fallbacks = {each["model"]: each for each in (*self.definition["fallback"], *older["fallback"])}
        return {**self.definition, "fallback": [*fallbacks.values()]}

    def changes_since(self, definition: Mapping[str, Any]) -> list[str]:
        """Return the arguments that changed since an earlier definition and make its answers unusable.

        The number of retries and the fallback models do not affect the requests: a change of these applies at once.
        """
        present, earlier = self.definition["asked"], definition["asked"]
        # A submission that was planned without older labels does not depend on them.
        named = [name for name in {**earlier, **present} if name != "relabel" or name in earlier]
        return [name for name in named if present.get(name) != earlier.get(name)]

    def as_of(self, definition: Mapping[str, Any]) -> Labeling:
        """Return the labeling for reading a submission with this definition; its rules are the current ones.

        A response that differs only in its words is read by the current class, which contains more than a schema.
        """
        if definition == self.definition:
            return self
        asked, present = definition["asked"], self.definition["asked"]
        prompt = replace(self.prompt, mask=mask_as_of(asked.get("mask"), self.mask))
        if asked["prompt"] != present["prompt"] or definition["prompt_version"] != self.prompt_version:
            prompt = replace(
                prompt,
                **{"documents": (), "documents_as": "file", **asked["prompt"]},
                version=definition["prompt_version"],
            )
        schemas = [
            without_notes([one["asked"]["response"] | {"name": ""}, one["columns"]])
            for one in (definition, self.definition)
        ]
        response = self.response
        if schemas[0] != schemas[1]:
            given = asked["response"]
            form = ResponseFormat(**{**given, "kind": ResponseKind(given["kind"])})
            response = StoredResponse(form, _in_order(definition["columns"] or given["json_schema"], self.reader))
        evidence = self.evidence and self.evidence.fitting(
            definition["key"], definition["keep"], Reader(response).schema
        )
        return replace(
            self,
            model=asked["model"],
            key=definition["key"],
            keep=definition["keep"],
            prompt=prompt,
            response=response,
            evidence=evidence,
            params=asked["params"],
            endpoint=asked["endpoint"],
            cascade=_cascade_of_json(asked.get("cascade"), None if self.cascade is None else self.cascade.gold),
            spend=replace(self.spend, price=_price_of_json(definition["price"])),
            resend=replace(
                self.resend,
                reuse=_reuse_of_json(asked),
                fallback=[
                    Fallback(**{**fallback, "price": _price_of_json(fallback["price"])})
                    for fallback in definition["fallback"]
                ],
            ),
        )

    def column_gap(self, other: Labeling) -> str | None:
        """Return how another definition's labeled table differs from this one's; None if it does not."""
        own, others = (
            {**dict.fromkeys([each.key, *each.keep], "of the rows"), **{f.name: f.type for f in each.result_schema}}
            for each in (self, other)
        )
        parts = {
            "without": [name for name in own if name not in others],
            "with": [name for name in others if name not in own],
            "with another type of": [name for name in own if name in others and own[name] != others[name]],
        }
        return ", ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names) or None

    @cached_property
    def code_version(self) -> str:
        """A digest that changes whenever labels could: with prompt, model, parameters or response schema."""
        spec = self.spec
        prompt = [
            self.prompt.system,
            self.prompt.user,
            list(self.prompt.images),
            [[t.role, t.text] for t in spec.turns],
            *self.prompt.asked_documents,
        ]
        schema = [spec.response.kind.value, spec.response.json_schema, spec.response.dimensions]
        fallback: list[Any] = [[labeling.model, dict(labeling.spec.params)] for labeling in self.models[1:]]
        content = [self.model, spec.endpoint.value, dict(spec.params), prompt, schema]
        if self.cascade is not None:
            fallback.append(self.cascade.promise)
        if self.mask is not None:
            content.append(dict(self.mask.settings()))
        if self.audited is not None:
            content.append(self.audited.promise)
        return _digest([*content, fallback] if fallback else content)


def _price_as_json(price: TokenPrice | None) -> Mapping[str, str] | None:
    if price is None:
        return None
    return {each.name: str(amount) for each in fields(price) if (amount := getattr(price, each.name)) is not None}


def _price_of_json(stored: Mapping[str, Any] | None) -> TokenPrice | None:
    return None if stored is None else TokenPrice(**stored)


def _reuse_of_json(asked: Mapping[str, Any]) -> Reuse | None:
    if "near" in asked:
        return Reuse(near=Near(**asked["near"]))
    return Reuse(relabel=Relabel(**asked["relabel"])) if "relabel" in asked else None


def promises_in(definition: Mapping[str, Any], *, has_older_labels: bool) -> list[list[Any]]:
    """Return the promises of a cascade and of shared answers in a stored definition, for `configuration_with`.

    `has_older_labels` is whether rows had older labels that could stay: without them, `Reuse(relabel=…)` has no effect.
    """
    asked = definition["asked"]
    cascade, reuse = _cascade_of_json(asked.get("cascade"), None), _reuse_of_json(asked) or Reuse()
    audited = reuse.near or (reuse.relabel if has_older_labels else None)
    return [each.promise for each in (cascade, audited) if each is not None]


def _cascade_of_json(stored: Mapping[str, Any] | None, gold: Any) -> Cascade | None:
    if stored is None:
        return None
    # The gold's labels of the sample are stored with the sample.
    gold = None if stored["within"] is None else gold if gold is not None else "gold"
    rolling = stored.get("calibrate", "partition")
    calibrate = Rolling(**rolling) if isinstance(rolling, Mapping) else rolling
    filters, guarantee = stored.get("guarantee"), None
    if filters is not None:
        guarantee = Precision(**filters) if "precision" in filters else Recall(**filters)
    known = {"price": _price_of_json(stored["price"]), "gold": gold, "calibrate": calibrate, "guarantee": guarantee}
    return Cascade(**{**stored, **known})


def _in_order(schema: Mapping[str, Any] | None, reader: Reader) -> Mapping[str, Any] | None:
    """Return the schema of columns with its properties in a reader's order, if it has the same properties.

    Some IO managers store a table's columns by position.
    """
    properties = {} if schema is None else schema.get("properties", {})
    names = reader.schema.names
    if properties.keys() != set(names):
        return schema
    return {**(schema or {}), "properties": {name: properties[name] for name in names}}


def _check_params(where: str, model: str, params: Mapping[str, Any], line: str) -> None:
    """Raise ConfigError for values that every vendor refuses, or that would break the bound on money.

    Vendors check ranges. `line` shows how this model's parameters are written.
    """
    for names, kinds, least, allowed, example in _NUMBERS:
        for name, value in given_settings(params, names):
            # In Python, True and False are integers; JSON has neither NaN nor infinity.
            is_kind = isinstance(value, kinds) and not isinstance(value, bool)
            if not (is_kind and value >= least and abs(value) < math.inf):
                raise ConfigError(
                    f"{where} has {name}={value!r}, which is not allowed: it is {allowed}, as in "
                    f"{{{name!r}: {example}}}. Correct it, or leave it out where the model has a default."
                )
    provider, _, name = model.partition("/")
    if params.get("max_tokens") is None and needs_max_tokens(provider, name):
        # Other vendors' names for this parameter would be refused here.
        most = next((value for _, value in given_settings(params)), 1_024)
        written = {**{name: value for name, value in params.items() if name not in MAXIMA}, "max_tokens": most}
        raise ConfigError(
            f"{where} has no 'max_tokens', the most tokens of a reply, for which Claude has no default. "
            f"Got {dict(params)}. Write: {line.format(model=model, params=written)}"
        )


def _digest(content: Any) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]
