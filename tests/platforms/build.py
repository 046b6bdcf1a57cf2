"""From a description to definitions: in Python, or as a project with a `defs.yaml` for each dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster_deltalake import LocalConfig
from dagster_deltalake_polars import DeltaLakePolarsIOManager
from dagster_duckdb import DuckDBResource
from dagster_duckdb_pandas import DuckDBPandasIOManager

import dagster_llm_batch as llm
from dagster_llm_batch import (
    Budget,
    HiveParquetIOManager,
    LLMBatchResource,
    QueueLimit,
    build_llm_batch_alert_sensor,
    build_llm_batch_jobs,
    build_llm_batch_retention,
    build_llm_batch_sensor,
    preset,
)
from tests.platforms.dataset_kinds import attributes, dataset, ledger_name, resource_key, upstream, write_files
from tests.platforms.evaluations import evaluation, evaluation_attributes, gold_and_tickets
from tests.platforms.platform_value import Platform
from tests.platforms.vendors import VENDORS, Places, settings_of, variable

__all__ = ["definitions_in", "write_project"]

_PYTHON = """
from pathlib import Path

from tests.platforms.build import definitions_in

defs = definitions_in(Path(__file__).parent)
"""
_AROUND = """
from pathlib import Path

from tests.platforms.build import around_in

defs = around_in(Path(__file__).parents[2])
"""
_ROWS = """
from pathlib import Path

from tests.platforms.build import rows_in

rows = rows_in(Path(__file__).parents[3], "{slot}")
"""
_LOADED = """
import sys
from pathlib import Path

import dagster as dg

sys.path.insert(0, str(Path(__file__).parent))
defs = dg.load_from_defs_folder(path_within_project=Path(__file__))
"""
_KINDS = {
    "openai": llm.OpenAIBatchResource,
    "anthropic": llm.AnthropicBatchResource,
    "bedrock": llm.BedrockBatchResource,
    "vertex": llm.VertexBatchResource,
    "gemini": llm.GeminiBatchResource,
    "openrouter": llm.OpenRouterBatchResource,
    "command": llm.CommandBatchResource,
}


def write_project(platform: Platform, places: Places, keys: Callable[[str], list[str | None]]) -> Path:
    """Write the project of a platform into its folder; return the file that Dagster and the command line load."""
    folder = Path(places.folder)
    (folder / "platform.txt").write_text(str(platform))
    (folder / "places.json").write_text(json.dumps(places.document))
    write_files(platform, folder, keys)
    file = folder / "definitions.py"
    if platform["face"] == "python":
        file.write_text(_PYTHON)
        return file
    module = f"of_{folder.name.replace('-', '_')}"
    (folder / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\n'
        f'root_module = "{module}"\ndefs_module = "{module}.defs"\ncode_location_target_module = "{module}"\n'
    )
    defs = folder / module / "defs"
    defs.mkdir(parents=True)
    for package in (defs.parent, defs):
        (package / "__init__.py").write_text("")
    (defs / "around.py").write_text(_AROUND)
    for slot in platform.slots:
        _write_component(defs / slot, "dagster_llm_batch.LLMBatchComponent", attributes(platform, slot))
        (defs / slot / "rows.py").write_text(_ROWS.format(slot=slot))
    if (found := evaluation_attributes(platform)) is not None:
        _write_component(defs / "measured", *found)
    file.write_text(_LOADED)
    return file


def _write_component(folder: Path, kind: str, given: Mapping[str, Any]) -> None:
    folder.mkdir()
    text = yaml.safe_dump({"type": kind, "attributes": dict(given)}, sort_keys=False, allow_unicode=True)
    (folder / "defs.yaml").write_text(text, encoding="utf-8")


def _read(folder: Path) -> tuple[Platform, Places]:
    platform = Platform.unchecked((folder / "platform.txt").read_text())
    return platform, Places(**json.loads((folder / "places.json").read_text()))


def rows_in(folder: Path, slot: str) -> Callable[[Any], Any]:
    """Return the rows function of a dataset in YAML."""
    from tests.platforms.dataset_kinds import rows_function

    platform, _ = _read(folder)
    return rows_function(platform, slot, folder)


def definitions_in(folder: Path) -> dg.Definitions:
    """Return the definitions of the platform whose project is in this folder, by the Python API."""
    platform, places = _read(folder)
    datasets = {slot: dataset(platform, slot, folder) for slot in platform.slots}
    assets = [one for made in datasets.values() for one in made]
    return dg.Definitions.merge(
        _around(platform, places), dg.Definitions(assets=[*assets, *evaluation(platform, datasets)])
    )


def around_in(folder: Path) -> dg.Definitions:
    """Return all that is not in YAML: resources, sensors, and the assets that datasets and evaluations read."""
    return _around(*_read(folder))


def _around(platform: Platform, places: Places) -> dg.Definitions:
    upstreams = [upstream(platform, slot) for slot in platform.slots if platform[f"{slot}.rows"] == "upstream"]
    resource_keys = {resource_key(platform, slot): slot for slot in platform.slots}
    extras = platform["extras"] == "all"
    sensors: list[dg.SensorDefinition] = _sensors(platform)
    alerts = [build_llm_batch_alert_sensor(_notify, sensor_names=tuple(one.name for one in sensors))] if extras else []
    retention = [
        build_llm_batch_retention(f"retention_{key}", resource_key=key) for key in (resource_keys if extras else ())
    ]
    jobs = [job for key in (resource_keys if extras else ()) for job in build_llm_batch_jobs(resource_key=key)]
    return dg.Definitions(
        assets=[*upstreams, *gold_and_tickets(platform)],
        sensors=[*sensors, *alerts],
        jobs=jobs,
        schedules=retention,
        resources={
            **{key: _resource(platform, places) for key in resource_keys},
            "warehouse": DuckDBResource(database=f"{places.folder}/warehouse.duckdb"),
            **_io_manager(platform, places),
        },
    )


SENSORS = ("llm_batch_sensor", "first", "second", *(f"sensor_of_llm_batch{end}" for end in ("", "_b", "_c")))
"""Names of the sensors that materialize labels. Dagster adds its own sensor."""
TOLD: list[str] = []


def _notify(text: str) -> None:
    TOLD.append(text)


def _sensors(platform: Platform) -> list[dg.SensorDefinition]:
    keys = list(dict.fromkeys(resource_key(platform, slot) for slot in platform.slots))
    match platform["sensors"]:
        case "two":
            return [build_llm_batch_sensor("first"), build_llm_batch_sensor("second")]
        case "selection":
            return [build_llm_batch_sensor(target=dg.AssetSelection.all())]
        case "each":
            return [build_llm_batch_sensor(f"sensor_of_{key}", resource_key=key) for key in keys]
        case _:
            return [build_llm_batch_sensor()]


def _resource(platform: Platform, places: Places) -> LLMBatchResource:
    """Return the resource, with all vendors of the platform, and OpenAI for judges and fallbacks."""
    keys = {platform[f"{slot}.vendor"]: platform[f"{slot}.key"] for slot in platform.slots}
    keys.setdefault("openai", "right")
    fields: dict[str, Any] = {}
    named: dict[str, Any] = {}
    for name, key in keys.items():
        vendor = VENDORS[name]
        settings = settings_of(name, key, places, dg.EnvVar(variable(name)))
        made = _KINDS[vendor.kind](**settings) if vendor.kind in _KINDS else preset(vendor.kind, **settings)
        (named if vendor.named else fields)[vendor.provider] = made
    return LLMBatchResource(
        namespace=platform["namespace"],
        ledger_url=places.ledger_url,
        payload_root=f"{places.folder}/payloads",
        providers=named,
        budgets=_budgets(platform),
        queue_limits=_queue_limits(platform),
        poll_seconds=0.05,
        **fields,
    )


def _budgets(platform: Platform) -> list[Budget]:
    budgets = [
        Budget(max_usd=0.000000001, period="ever", asset=ledger_name(platform, slot))
        for slot in platform.slots
        if platform[f"{slot}.rule"] == "low_budget"
    ]
    match platform["budget"]:
        case "month":
            budgets.append(Budget(max_usd=100))
        case "hard":
            budgets.append(Budget(max_usd=100, period="day", limit="hard"))
    return budgets


def _queue_limits(platform: Platform) -> dict[str, QueueLimit]:
    limits = {
        "batches": QueueLimit(max_batches=1),
        "requests": QueueLimit(max_requests=5),
        "tokens": QueueLimit(max_tokens=2_000),
    }
    if platform["queue"] not in limits:
        return {}
    providers = {VENDORS[platform[f"{slot}.vendor"]].provider for slot in platform.slots}
    return dict.fromkeys(sorted(providers), limits[platform["queue"]])


def _io_manager(platform: Platform, places: Places) -> dict[str, Any]:
    folder = f"{places.folder}/tables"
    match platform["io"]:
        case "hive":
            return {"io_manager": HiveParquetIOManager(root=folder)}
        case "duckdb":
            return {"io_manager": DuckDBPandasIOManager(database=f"{folder}.duckdb")}
        case "delta":
            return {"io_manager": DeltaLakePolarsIOManager(root_uri=folder, storage_options=LocalConfig())}
        case _:
            return {"io_manager": dg.FilesystemIOManager(base_dir=folder)}


def forget(folder: Path) -> None:
    """Forget the modules of a project, and that its folder is imported from."""
    sys.path[:] = [path for path in sys.path if path != str(folder)]
    for name in [
        name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(folder))
    ]:
        del sys.modules[name]
