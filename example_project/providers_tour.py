"""The same labeling through eight vendors' batch APIs, all emulated on this machine, in one process.

    tweets ──▶ tour_<provider>_batch ─▶ tour_<provider>  (eight of them) ─┬─▶ tour_eval
    tweet_gold ─────────────────────────────────────────────────────────┘

Real: the assets, the engine, each vendor's own SDK, and the S3 and Cloud Storage protocols for files. Simulated: the
answers, by one rule for all models, and their numbers of tokens. So the accuracy is meaningless for the models, and
costs are only approximate. Each tour starts from scratch and deletes its files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    GeminiBatchResource,
    LLMBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    VertexBatchResource,
    evaluation_assets,
    llm_batch_assets,
    preset,
)
from dagster_llm_batch.core.label_join import PROVENANCE
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, local_gcs, local_s3
from dagster_llm_batch.text import money_text
from example_project import settings
from example_project.definitions import Sentiment, ask, daily, tweet_gold, tweets
from example_project.parquet import ParquetIOManager

__all__ = ["MODELS", "Clouds", "clouds", "go", "show", "tour"]

MODELS: dict[str, dict[str, Any]] = {
    "openai/gpt-5-nano": {"max_completion_tokens": 2_000},
    "azure/gpt-4o": {"max_tokens": 64},
    "anthropic/claude-haiku-4-5": {"max_tokens": 64},
    "bedrock/anthropic.claude-haiku-4-5-20251001-v1:0": {"max_tokens": 64},
    "vertex/gemini-2.5-flash": {"max_output_tokens": 64},
    "gemini/gemini-2.5-flash-lite": {"max_output_tokens": 64},
    "openrouter/openai/gpt-4o-mini": {"max_tokens": 64},
    "mistral/mistral-small-2603": {"max_tokens": 64},
}
"""The models with their parameters, under each vendor's names."""
LEAST_ROWS = 100
"""Bedrock refuses smaller batches, like its emulator."""
SIMULATED = "simulated answers: their accuracy is no measure of these models"
_DAY = settings.EXAMPLE_DAYS[0]
_BUCKET = "tour"
_EVALUATION = "tour_eval"
_QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


@dataclass(frozen=True)
class Clouds:
    """The emulated vendors, and the storage that two of them need."""

    emulator: Emulator
    s3_url: str
    gcs_url: str

    def resource(self) -> LLMBatchResource:
        """Return the resource with all providers. In a deployment, only the addresses and keys differ."""
        emulator, key = self.emulator, DEFAULT_KEY
        return LLMBatchResource(
            openai=OpenAIBatchResource(api_key=key, base_url=emulator.openai_base_url),
            anthropic=AnthropicBatchResource(api_key=key, base_url=emulator.anthropic_base_url),
            bedrock=BedrockBatchResource(
                role_arn="arn:aws:iam::123456789012:role/batch",
                s3_uri=f"s3://{_BUCKET}/llm",
                region_name="us-east-1",
                endpoint_url=emulator.bedrock_url,
                s3_endpoint_url=self.s3_url,
                quotas_endpoint_url=emulator.bedrock_url,
                aws_access_key_id=key,
                aws_secret_access_key="emulator",  # noqa: S106 - no secret
            ),
            vertex=VertexBatchResource(
                project="emulator",
                location="us-central1",
                bucket=_BUCKET,
                base_url=emulator.vertex_base_url,
                storage_url=self.gcs_url,
                access_token=key,
            ),
            gemini=GeminiBatchResource(api_key=key, base_url=emulator.gemini_base_url),
            openrouter=OpenRouterBatchResource(api_key=key, base_url=emulator.openrouter_base_url),
            providers={
                "azure": preset("azure", api_key=key, base_url=emulator.azure_base_url),
                "mistral": preset("mistral", api_key=key, base_url=emulator.mistral_base_url),
            },
        )


@contextmanager
def clouds() -> Iterator[Clouds]:
    """Start the emulated vendors and storage on loopback, and stop them at the end."""
    with (
        local_s3(_BUCKET) as s3_url,
        local_gcs(_BUCKET) as gcs_url,
        Emulator(s3_url=s3_url, gcs_url=gcs_url) as emulator,
    ):
        yield Clouds(emulator, s3_url, gcs_url)


def tour(around: Clouds, folder: Path) -> pl.DataFrame:
    """Submit a day's tweets to all providers, let the batches end, evaluate the labels; return one row a provider.

    Columns: provider, model, labeled, rows, accuracy, cost_usd and realtime_usd (null: unknown price), basis.
    Raises SettingError, or the error of a failed run.
    """
    if settings.rows_per_day() < LEAST_ROWS:
        raise settings.SettingError(
            f"EXAMPLE_ROWS_PER_DAY={settings.rows_per_day()} is too few: Bedrock takes batches of {LEAST_ROWS} "
            "requests or more. Unset it."
        )
    datasets = {model.partition("/")[0]: _dataset(model, params) for model, params in MODELS.items()}
    sending = [tweets, tweet_gold, *(batch for batch, _ in datasets.values())]
    landing = [labels for _, labels in datasets.values()]
    evaluation = evaluation_assets(
        name=_EVALUATION,
        gold=tweet_gold,
        candidates=datasets,
        key="text_id",
        target="label",
        partitions_def=daily,
        frame="polars",
    )
    assets = [*sending, *landing, *evaluation]
    resources = {"llm_batch": around.resource(), "io_manager": ParquetIOManager(folder=str(folder / "tables"))}
    with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        for selected in (sending, [*landing, *evaluation]):
            dg.materialize(
                assets,
                selection=selected,
                partition_key=_DAY,
                instance=instance,
                resources=resources,
                run_config=_QUIET,
            )
            around.emulator.settle()  # takes hours in the clouds, where a sensor waits
        with dg.Definitions(assets=assets, resources=resources).get_asset_value_loader(instance) as loader:
            return _by_provider(lambda name: loader.load_asset_value(name, partition_key=_DAY))


def _dataset(model: str, params: Mapping[str, Any]) -> list[dg.AssetsDefinition]:
    return llm_batch_assets(
        name=_name(model),
        rows=tweets,
        key="text_id",
        partitions_def=daily,
        prompt=ask,
        response=Sentiment,
        model=model,
        params=params,
        max_cost_usd=1,
        frame="polars",
    )


def _name(model: str) -> str:
    return f"tour_{model.partition('/')[0]}"


def _by_provider(load: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
    measured = {row["candidate"]: row for row in load(_EVALUATION).to_dicts()}
    rows = []
    for model in MODELS:
        provider, _, name = model.partition("/")
        billed = pl.concat(load(f"{_name(model)}{part}").select(PROVENANCE) for part in ("", "_rejects"))
        rows.append(
            {
                "provider": provider,
                "model": name,
                "labeled": measured[provider]["n_labeled"],
                "rows": measured[provider]["n_gold"],
                "accuracy": measured[provider]["accuracy"],
                "cost_usd": _sum(billed["llm_cost_usd"]),
                "realtime_usd": _sum(billed["llm_realtime_usd"]),
                "basis": ", ".join(sorted(billed["llm_price_basis"].unique())),
            }
        )
    return pl.DataFrame(rows)


def _sum(amounts: pl.Series) -> Decimal | None:
    return None if amounts.null_count() else Decimal(amounts.sum())


def show(rows: pl.DataFrame) -> Table:
    """Return the tour's final table."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    table.title = f"One labeling through {len(MODELS)} providers\n({SIMULATED})"
    table.add_column("provider", no_wrap=True)
    table.add_column("model", overflow="fold")
    for name in ("labeled", "accuracy", "cost", "real-time", "saved", "basis"):
        table.add_column(name, no_wrap=True, justify="right")
    for row in rows.to_dicts():
        cost, realtime = row["cost_usd"], row["realtime_usd"]
        table.add_row(
            row["provider"],
            row["model"],
            f"{row['labeled']}/{row['rows']}",
            f"{row['accuracy']:.2f}",
            "unknown" if cost is None else money_text(cost),
            "unknown" if realtime is None else money_text(realtime),
            f"{1 - cost / realtime:.0%}" if cost is not None and realtime else "-",
            row["basis"],
        )
    table.caption = "The emulator estimates tokens; prices are the price book's, each with its basis."
    table.caption_justify = "left"
    return table


def go() -> None:
    """Make the whole tour, and print it."""
    console = Console(highlight=False)
    console.print(
        f"{len(MODELS)} providers, emulated on this machine; {_DAY}'s tweets to each. Some 30 seconds.", soft_wrap=True
    )
    with clouds() as around, tempfile.TemporaryDirectory() as folder:
        console.print(show(tour(around, Path(folder))))
        books = around.emulator.books
        console.print(
            f"In the emulated providers' books: {len(books.batches)} batches, "
            f"{sum(one.billed for one in books.executions)} requests billed, {len(books.billed_twice())} of them twice."
        )
