"""The factors of an ordinary platform, their values, and which of them do not go together.

The first value of a factor is the plain one. A platform's description lists only its other values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

__all__ = [
    "DATASET",
    "PLATFORM",
    "SLOTS",
    "STOPPING",
    "STRUCTURED",
    "datasets_of",
    "defaults",
    "is_stopped",
    "names",
    "void",
]

SLOTS = ("a", "b", "c")
"""Datasets of a platform. Each has its own factors, named as in `a.vendor`."""

PLATFORM: Mapping[str, tuple[str, ...]] = {
    "datasets": ("2", "1", "3"),
    "face": ("python", "yaml"),
    "ledger": ("sqlite", "postgresql"),
    "io": ("fs", "hive", "duckdb", "delta"),
    "prefix": ("none", "one", "two"),
    "translator": ("none", "groups"),
    "namespace": ("default", "prod"),
    "sensors": ("one", "two", "selection", "each"),
    "extras": ("none", "all"),
    "budget": ("none", "month", "hard"),
    "queue": ("none", "batches", "requests", "tokens"),
    "runs": ("range", "each", "together"),
    "evaluation": (
        *("none", "evaluation", "estimate", "gold_sample", "pairwise", "rubric", "agreement"),
        *("annotation", "drift", "costs", "student", "skew"),
    ),
    "evaluated": ("together", "apart"),
}

DATASET: Mapping[str, tuple[str, ...]] = {
    "partitions": (
        *("none", "daily", "later", "berlin", "hourly", "berlin_hourly", "weekly", "monthly", "weekdays"),
        *("static", "dynamic", "multi", "multi_dynamic"),
    ),
    "rows": ("function", "upstream", "arrow", "polars", "lazy", "pandas", "batches", "parquet", "csv", "sql"),
    "vendor": (
        *("openai", "openai_named", "anthropic", "anthropic_named", "bedrock", "vertex", "gemini", "mistral"),
        *("azure", "groq", "vllm", "openrouter", "command", "command_named"),
    ),
    "key": ("right", "unset", "empty", "wrong"),
    "response": ("literal", "nested", "list", "schema", "text", "embedding", "moderation"),
    "mode": ("deferred", "wait"),
    "rule": (
        *("none", "small_batches", "limit", "hard_limit", "low_limit", "low_budget", "fallback", "cascade"),
        *("deadline", "realtime", "urgent", "one_wave"),
    ),
    "content": ("plain", "refused", "all_refused", "garbled", "blank", "duplicates", "empty", "unicode"),
    "frame": ("arrow", "polars", "pandas", "batches"),
    "id": ("text", "integer"),
}

STOPPING = frozenset(
    {
        *("key=unset", "key=empty", "key=wrong"),
        *("rule=low_limit", "rule=low_budget"),
    }
)
"""Values that stop their dataset before it sends. Its other values then only show how they are refused."""

STRUCTURED = frozenset({"literal", "nested", "list", "schema"})
_WITH_EMBEDDINGS = frozenset({"openai", "openai_named", "gemini", "bedrock"})
_WITH_MODERATION = frozenset({"openai", "openai_named"})
_OWN = frozenset({"command", "command_named"})
_REALTIME = frozenset({"deadline", "realtime", "urgent"})
_FRAMES = {"fs": ("arrow", "polars", "pandas"), "hive": DATASET["frame"], "duckdb": ("pandas",), "delta": ("polars",)}
_OF_DEFINITIONS = frozenset({"annotation", "student", "skew"})


def defaults() -> dict[str, str]:
    """Return the plain value of every factor."""
    own = {f"{slot}.{name}": values[0] for slot in SLOTS for name, values in DATASET.items()}
    return {**{name: values[0] for name, values in PLATFORM.items()}, **own}


def names() -> dict[str, tuple[str, ...]]:
    """Return all factors with their values; each dataset's factors have its slot as a prefix."""
    own = {f"{slot}.{name}": values for slot in SLOTS for name, values in DATASET.items()}
    return {**PLATFORM, **own}


def datasets_of(values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the slots that the platform has."""
    return SLOTS[: int(values["datasets"])]


def is_stopped(values: Mapping[str, str], slot: str) -> bool:
    """Return whether something stops this dataset before it sends."""
    return any(f"{name}={values[f'{slot}.{name}']}" in STOPPING for name in DATASET)


def void(values: Mapping[str, str]) -> str | None:
    """Return why this test cannot have a platform of these values, or None if it can.

    All datasets of a platform that are not stopped must materialize. A factor that is not in `values` is still open.
    """
    return next(_reasons(values), None)


def _reasons(values: Mapping[str, str]) -> Iterator[str]:
    slots = SLOTS[: int(values.get("datasets", "3"))]
    store = values.get("io", "")
    keys: dict[str, str] = {}
    for slot in slots:
        own = {name: values.get(key, "") for name, key in _OWN_NAMES[slot]}
        yield from _of_dataset(own)
        yield from _of_storage(store, own)
        # One provider has one key.
        vendor, key = own["vendor"], own["key"]
        if vendor and key and keys.setdefault(vendor, key) != key:
            yield "one vendor has one key"
    if keys.get("openai", "right") != "right":
        asked = {values.get(f"{slot}.rule") for slot in slots}
        if "fallback" in asked or values.get("evaluation") in {"pairwise", "rubric"}:
            yield "the vendor of the judge or the fallback has its key"
    waits = "wait" in {values.get(f"{slot}.mode") for slot in slots}
    if values.get("runs") == "together" and waits and values.get("queue", "none") != "none":
        yield "a run waits for places that another dataset of the run may hold, and no sensor looks meanwhile"
    yield from _of_evaluation(values)


_OWN_NAMES = {slot: tuple((name, f"{slot}.{name}") for name in DATASET) for slot in SLOTS}


def _of_dataset(own: Mapping[str, str]) -> Iterator[str]:
    response, vendor, rule, content = own["response"], own["vendor"], own["rule"], own["content"]
    if response == "embedding" and vendor and vendor not in _WITH_EMBEDDINGS:
        yield "this vendor has no embeddings here"
    if response == "moderation" and vendor and vendor not in _WITH_MODERATION:
        yield "this vendor has no moderation here"
    if rule == "cascade" and (response not in STRUCTURED | {""} or content in {"all_refused", "empty"}):
        yield "a cascade needs classes, a score and answers"
    if response == "moderation" and rule in {"limit", "hard_limit", "low_limit", "low_budget", "fallback"}:
        yield "moderation is free, and of one model"
    if vendor in _OWN and (own["key"] in {"unset", "empty"} or rule in {"low_limit", "low_budget", *_REALTIME}):
        yield "a command has no key and no price, and answers in batches alone"
    if own["key"] not in {"", "right"} and rule in {"low_limit", "low_budget"}:
        yield "one reason to stop is enough"
    if content == "empty" and rule in {"low_limit", "low_budget"}:
        yield "no rows cost nothing"
    if content == "garbled" and response in {"text", "embedding", "moderation"}:
        yield "any text fits, and a vector is none"


def _of_storage(store: str, own: Mapping[str, str]) -> Iterator[str]:
    if store and own["frame"] and own["frame"] not in _FRAMES[store]:
        yield f"{store} does not take this frame"
    if store in {"duckdb", "delta"} and own["partitions"] in {"hourly", "berlin_hourly"}:
        yield "these stores want a column of time, which the tickets have by the day"


def _of_evaluation(values: Mapping[str, str]) -> Iterator[str]:
    """Yield the rules of evaluations. They measure the first dataset, and the others are further candidates."""
    evaluation, apart = values.get("evaluation", ""), values.get("evaluated") == "apart"
    if apart and values.get("io") == "delta":
        yield "evaluations have their partition as text, of which this store cannot make a time"
    if evaluation in {"", "none"}:
        return
    if apart and evaluation in {"costs", "student", "skew"}:
        yield "costs are apart by the time of sending, and the others have their dataset's partitions"
    if evaluation == "costs":
        return
    if values.get("face") == "yaml" and evaluation in _OF_DEFINITIONS:
        yield "it is made of the definitions of a dataset, not of its key"
    if values.get("io") == "fs" and evaluation == "student":
        yield "a student wants a store of tables"
    own = {name: values.get(key, "") for name, key in _OWN_NAMES["a"]}
    if own["response"] not in STRUCTURED | {""} or own["content"] in {"all_refused", "empty"}:
        yield "an evaluation needs labels with classes"
    if f"key={own['key']}" in STOPPING or f"rule={own['rule']}" in STOPPING:
        yield "an evaluation needs labels"
    if evaluation == "pairwise":
        yield from _of_second(values, own, apart=apart)
    if own["partitions"] == "none" and (apart or evaluation == "drift"):
        yield "without partitions there is nothing apart"
    if evaluation == "skew":
        yield from _of_skew(values, own)


def _of_skew(values: Mapping[str, str], own: Mapping[str, str]) -> Iterator[str]:
    """Yield the rules of skew, which asks the first dataset again, partition by partition."""
    if own["vendor"] in _OWN or own["rule"] in {"realtime", "cascade", "fallback"}:
        yield "skew asks again in real time what came in batches"
    if values.get("io") == "delta" and own["partitions"] not in {"", "none"}:
        yield "skew has its dataset's partitions as text, of which this store cannot make a time"


def _of_second(values: Mapping[str, str], first: Mapping[str, str], *, apart: bool) -> Iterator[str]:
    """Yield the rules of a judge, which compares the first two datasets."""
    own = {name: values.get(key, "") for name, key in _OWN_NAMES["b"]}
    if values.get("datasets") == "1":
        yield "a comparison needs two"
    if own["response"] not in STRUCTURED | {""} or own["content"] in {"all_refused", "empty"}:
        yield "a comparison needs answers of both"
    if f"key={own['key']}" in STOPPING or f"rule={own['rule']}" in STOPPING:
        yield "a comparison needs answers of both"
    if own["id"] and first["id"] and own["id"] != first["id"]:
        yield "a comparison needs the same keys"
    others = {"", "none", first["partitions"]}
    if apart and first["partitions"] and own["partitions"] not in others:
        yield "apart, both have the same partitions"
