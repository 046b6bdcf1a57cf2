"""A deployment over Ray, which two processes build in the same way."""

from __future__ import annotations

from pathlib import Path

from ray_batches import JOBS

from cluster import ADDRESS  # isort: skip
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.providers.ray.answers import RayAnswers
from dagster_llm_batch.providers.ray.provider import RayProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

ROWS = [{"id": str(n), "text": f"text {n}"} for n in range(7)]
LABELING = Labeling(asset="shouts", model="ray/m", key="id", prompt=Prompt(user="{{ text }}"))


def deployment(folder: Path, kind: type[RayProvider] = RayProvider) -> Engine:
    answers = RayAnswers(call="shouting:Slow", requests_at_once=2, rows_per_file=3)
    environment = {"working_dir": str(JOBS), "env_vars": {"SHOUTING": str(folder)}}
    provider = kind(ADDRESS, str(folder / "storage"), answers, runtime_env=environment)
    ledger = Ledger(folder / "ledger.sqlite")
    return Engine(
        Deployment({"ray": provider}, ledger, PayloadStore(str(folder / "payloads")), "test", sleep=lambda _: None)
    )
