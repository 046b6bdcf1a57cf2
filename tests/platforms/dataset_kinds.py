"""The labeled datasets of a platform: the same arguments in Python and in YAML.

This module must not have `from __future__ import annotations`: Dagster reads the annotation of `context`.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from dagster_llm_batch import (
    Cascade,
    Checks,
    Fallback,
    Limits,
    LLMBatchTranslator,
    Prompt,
    Realtime,
    Resend,
    Spend,
    SqlRows,
    TokenPrice,
    llm_batch_assets,
)
from tests.platforms.platform_value import Platform
from tests.platforms.tickets import (
    PARTITIONS,
    RESPONSES,
    first_day,
    partition_column,
    partitions_def,
    tickets_of,
)
from tests.platforms.vendors import VENDORS

__all__ = ["EMPTY", "attributes", "dataset", "key_prefix", "name_of", "rows_function", "upstream", "write_files"]

# The columns are known even if a platform has no rows.
EMPTY = pa.schema(
    [
        ("ticket_id", pa.string()),
        ("body", pa.string()),
        ("day", pa.timestamp("us")),
        ("region", pa.string()),
        ("customer", pa.string()),
        ("urgent", pa.bool_()),
    ]
)
KEEP = ["body", "day", "region", "customer"]
_PRICE = {"input_usd": 1, "output_usd": 2}
_TINY = 0.000000001
_SYSTEM = "You label tickets."


def name_of(slot: str) -> str:
    """Return the name of a dataset."""
    return f"labels_{slot}"


def key_prefix(platform: Platform) -> list[str]:
    """Return the prefix of all keys."""
    return {"none": [], "one": ["crm"], "two": ["crm", "gold"]}[platform["prefix"]]


def ledger_name(platform: Platform, slot: str) -> str:
    """Return the name of a dataset in the ledger and on the command line."""
    return "/".join([*key_prefix(platform), name_of(slot)])


def resource_key(platform: Platform, slot: str) -> str:
    """Return the key of a dataset's LLMBatchResource: with one sensor per dataset, every dataset has its own."""
    return f"llm_batch_{slot}" if platform["sensors"] == "each" and slot != "a" else "llm_batch"


class _Groups(LLMBatchTranslator):
    def get_asset_spec(self, data: Any) -> dg.AssetSpec:
        spec = super().get_asset_spec(data)
        return spec.replace_attributes(group_name=f"of_{data.role}", owners=["team:crm"])


def translator(platform: Platform) -> LLMBatchTranslator | None:
    """Return the translator of all factories."""
    return _Groups() if platform["translator"] == "groups" else None


def model_of(own: dict[str, str]) -> str:
    """Return the model of a dataset."""
    vendor = VENDORS[own["vendor"]]
    models = {"embedding": vendor.embedding or vendor.model, "moderation": "omni-moderation-latest"}
    return f"{vendor.provider}/{models.get(own['response'], vendor.model)}"


def _params(own: dict[str, str], most: int = 300) -> dict[str, Any]:
    return {} if own["response"] in {"embedding", "moderation"} else {VENDORS[own["vendor"]].most: most}


def _prompt(own: dict[str, str], slot: str) -> dict[str, str]:
    """Return the parts of the prompt. A vector and a moderation have one text."""
    if own["response"] in {"embedding", "moderation"}:
        return {"user": f"Dataset {slot}: {{{{ body }}}}"}
    return {"system": f"{_SYSTEM} This is dataset {slot}.", "user": "{{ body }}"}


def _fallback(own: dict[str, str]) -> tuple[str, dict[str, Any]]:
    if own["response"] == "embedding":
        return "openai/text-embedding-3-large", {}
    return "openai/gpt-4o", {"max_tokens": 300}


def _oracle(own: dict[str, str]) -> str:
    vendor = VENDORS[own["vendor"]]
    return f"{vendor.provider}/{vendor.larger}"


def _metadata(platform: Platform, own: dict[str, str]) -> dict[str, Any]:
    column = partition_column(own["partitions"])
    return {} if column is None or platform["io"] not in {"duckdb", "delta"} else {"partition_expr": column}


def dataset(platform: Platform, slot: str, folder: Path) -> list[dg.AssetsDefinition]:
    """Return the dataset by the Python API."""
    own = platform.of_dataset(slot)
    rule, model = own["rule"], model_of(own)
    more: dict[str, Any] = {}
    price = TokenPrice(**_PRICE) if own["vendor"] == "vllm" else None
    spend = Spend(price=price, limit="hard" if rule == "hard_limit" else "measured")
    fallback, params = _fallback(own)
    match rule:
        case "small_batches":
            more["limits"] = Limits(max_requests_per_batch=2)
        case "limit" | "hard_limit":
            more["max_cost_usd"] = 5
        case "low_limit":
            more["max_cost_usd"] = _TINY
        case "fallback":
            more["resend"] = Resend(fallback=[Fallback(fallback, params=params)])
        case "one_wave":
            more["resend"] = Resend(max_waves=1, invalid_waves=1)
        case "cascade":
            more["cascade"] = Cascade(
                oracle=_oracle(own),
                target="topic",
                agreement=0.6,
                confidence=0.6,
                score="confidence",
                sample=3,
                price=price,
            )
        case "deadline":
            more["realtime"] = Realtime(deadline=timedelta(hours=20))
        case "realtime":
            more["realtime"] = Realtime(deadline=timedelta(0))
        case "urgent":
            more["realtime"] = Realtime(urgent="urgent")
    return llm_batch_assets(
        name=name_of(slot),
        rows=_rows(platform, slot, folder),
        key="ticket_id",
        prompt=Prompt(**_prompt(own, slot)),
        model=model,
        response=RESPONSES[own["response"]],
        params=_params(own),
        keep=KEEP,
        partitions_def=partitions_def(own["partitions"]),
        mode=own["mode"],
        frame=own["frame"],
        spend=spend,
        checks=Checks(min_coverage=0, min_parse_rate=0),
        key_prefix=key_prefix(platform),
        resource_key=resource_key(platform, slot),
        metadata=_metadata(platform, own),
        translator=translator(platform),
        **more,
    )


def attributes(platform: Platform, slot: str) -> dict[str, Any]:
    """Return the attributes of the dataset in `defs.yaml`."""
    own = platform.of_dataset(slot)
    response = own["response"]
    classes = {"literal": "LiteralLabel", "nested": "NestedLabel", "list": "ListLabel"}
    forms: dict[str, Any] = {
        "schema": RESPONSES["schema"],
        "embedding": {"type": "embedding", "dimensions": 8},
        "moderation": {"type": "moderation", "categories": ["hate", "violence"]},
    }
    spend: dict[str, Any] = {"limit": "hard"} if own["rule"] == "hard_limit" else {}
    if own["vendor"] == "vllm":
        spend["price"] = dict(_PRICE)
    fallback, params = _fallback(own)
    by_rule: dict[str, dict[str, Any]] = {
        "small_batches": {"limits": {"max_requests_per_batch": 2}},
        "limit": {"max_cost_usd": 5},
        "hard_limit": {"max_cost_usd": 5},
        "low_limit": {"max_cost_usd": _TINY},
        "fallback": {"resend": {"fallback": [{"model": fallback, "params": params}]}},
        "one_wave": {"resend": {"max_waves": 1, "invalid_waves": 1}},
        "cascade": {
            "cascade": {
                "oracle": _oracle(own),
                "target": "topic",
                "agreement": 0.6,
                "confidence": 0.6,
                "score": "confidence",
                "sample": 3,
                **({"price": dict(_PRICE)} if own["vendor"] == "vllm" else {}),
            }
        },
        "deadline": {"realtime": {"deadline": {"hours": 20}}},
        "realtime": {"realtime": {"deadline": {"hours": 0}}},
        "urgent": {"realtime": {"urgent": "urgent"}},
    }
    rows: Any = {"function": ".rows.rows"}
    if own["rows"] == "upstream":
        rows = "/".join([*key_prefix(platform), f"tickets_{slot}"])
    elif own["rows"] == "sql":
        rows = {"sql": _query(own, slot), "resource": "warehouse"}
    made: dict[str, Any] = {
        "name": name_of(slot),
        "rows": rows,
        "key": "ticket_id",
        "prompt": _prompt(own, slot),
        "model": model_of(own),
        "params": _params(own),
        "keep": KEEP,
        "partitions_def": None if PARTITIONS[own["partitions"]] is None else dict(PARTITIONS[own["partitions"]] or {}),
        "mode": own["mode"],
        "frame": own["frame"],
        "checks": {"min_coverage": 0, "min_parse_rate": 0},
        "key_prefix": key_prefix(platform),
        "resource_key": resource_key(platform, slot),
        "metadata": _metadata(platform, own),
        **by_rule.get(own["rule"], {}),
    }
    if spend:
        made["spend"] = spend
    if response in classes:
        made["response"] = f"tests.platforms.tickets.{classes[response]}"
    elif response in forms:
        made["response"] = forms[response]
    if platform["translator"] == "groups":
        made["translation"] = {"group_name": "of_{{ role }}", "owners": ["team:crm"]}
    return {name: value for name, value in made.items() if value not in (None, {}, [])}


def _rows(platform: Platform, slot: str, folder: Path) -> Any:
    own = platform.of_dataset(slot)
    if own["rows"] == "upstream":
        return dg.AssetKey([*key_prefix(platform), f"tickets_{slot}"])
    if own["rows"] == "sql":
        return SqlRows(sql=_query(own, slot), resource="warehouse")
    return rows_function(platform, slot, folder)


def rows_function(platform: Platform, slot: str, folder: Path) -> Callable[[Any], Any]:
    """Return the function that gives a dataset's rows."""
    own = platform.of_dataset(slot)

    def rows(context: Any) -> Any:
        tickets = tickets_of(own["partitions"], context.partition_key, own["content"], own["id"])
        table = table_of(tickets, platform, own, context.partition_key)
        if platform["io"] == "delta" and not tickets and own["rows"] in {"function", "csv"}:
            # An empty list or file carries no types, and this store needs the type of the time column.
            return table
        if own["rows"] == "function":
            return table.to_pylist() if platform["io"] == "delta" else tickets
        file = folder / f"{slot}-{abs(hash(context.partition_key))}.{own['rows']}"
        match own["rows"]:
            case "arrow":
                return table
            case "polars":
                return pl.from_arrow(table)
            case "lazy":
                frame = pl.from_arrow(table)
                assert isinstance(frame, pl.DataFrame)
                return frame.lazy()
            case "pandas":
                return table.to_pandas()
            case "batches":
                return iter(table.to_batches(max_chunksize=2))
            case "parquet":
                pq.write_table(table, file)
                return pq.ParquetFile(file)
            case "csv":
                frame = pl.from_arrow(table)
                assert isinstance(frame, pl.DataFrame)
                frame.write_csv(file)
                return pl.read_csv(file, try_parse_dates=True)
            case kind:
                raise AssertionError(kind)

    return rows


def table_of(
    tickets: list[dict[str, Any]], platform: Platform, own: dict[str, str], partition: str | None = None
) -> pa.Table:
    """Return tickets as Arrow, with all columns even for an empty list."""
    schema = EMPTY
    if own["id"] == "integer":
        schema = schema.set(0, pa.field("ticket_id", pa.int64()))
    if platform["io"] == "delta":
        # Dagster's Delta IO manager finds a partition of time by a column with its first day.
        schema = schema.set(schema.get_field_index("day"), pa.field("day", pa.date32()))
        first = first_day(own["partitions"], partition)
        tickets = [{**ticket, "day": first or ticket["day"].date()} for ticket in tickets]
    return pa.Table.from_pylist(tickets, schema=schema)


def _query(own: dict[str, str], slot: str) -> str:
    where = "" if own["partitions"] == "none" else " where part = $partition_key"
    return f"select ticket_id, body, day, region, customer, urgent from tickets_{slot}{where}"


def upstream(platform: Platform, slot: str) -> dg.AssetsDefinition:
    """Return the asset that a dataset with the rows "upstream" reads, in the frame that the store takes."""
    own = platform.of_dataset(slot)

    @dg.asset(
        name=f"tickets_{slot}",
        key_prefix=key_prefix(platform) or None,
        partitions_def=partitions_def(own["partitions"]),
        metadata=_metadata(platform, own),
    )
    def tickets(context: dg.AssetExecutionContext) -> Any:
        partition = context.partition_key if context.has_partition_key else None
        given = tickets_of(own["partitions"], partition, own["content"], own["id"])
        return framed(table_of(given, platform, own, partition), platform)

    return tickets


def framed(table: pa.Table, platform: Platform) -> Any:
    """Return a table in the frame that the platform's store takes."""
    match platform["io"]:
        case "duckdb":
            return table.to_pandas()
        case "delta":
            return pl.from_arrow(table)
        case _:
            return table


def write_files(platform: Platform, folder: Path, keys: Callable[[str], list[str | None]]) -> None:
    """Write the database that queries read."""
    with duckdb.connect(str(folder / "warehouse.duckdb")) as connection:
        for slot in platform.slots:
            own = platform.of_dataset(slot)
            if own["rows"] != "sql":
                continue
            tables: list[pa.Table] = []
            for key in keys(own["partitions"]):
                tickets = tickets_of(own["partitions"], key, own["content"], own["id"])
                table = table_of(tickets, platform, own, key)
                tables.append(table.append_column("part", pa.array([key] * len(table), pa.string())))
            connection.register("given", pa.concat_tables(tables))
            connection.execute(f"create table tickets_{slot} as select * from given")
