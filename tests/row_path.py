"""A row's walk from its asset to its label, by the functions that it enters: docs/design/architecture.md shows it.

`tests/dagster/test_row_path.py` follows a real row, and compares the order.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["WALK", "Step", "walk"]


class Step(NamedTuple):
    """One function of the walk, as `package.module:qualified_name`, and its work."""

    function: str
    work: str


WALK: dict[str, tuple[Step, ...]] = {
    "A run of the asset `…_batch`": (
        Step("assets.submission:submission_asset.<locals>.submit", "Dagster calls the asset."),
        Step("assets.dataset:Dataset.read_rows", "Read the rows of the partition."),
        Step("engine.engine:Engine.plan", "Plan a submission."),
        Step("loop.receipts:recover_partition", "Read receipts that a dead process left."),
        Step("loop.knowledge:read_knowledge", "Read earlier submissions and answers, under the partition's lease."),
        Step("files.request_writer:Draft.add_rows", "Take the rows, some thousand at a time."),
        Step("files.row_renderer:RowRenderer.requests", "Make a prompt of each row."),
        Step("core.identity:make_requests", "Give each request its id, the digest of its content."),
        Step("providers.openai_api.requests:OpenAILines.encode", "Write the request as the vendor's line."),
        Step("files.request_files:ShardFiles.add", "Add the line to a shard's file."),
        Step("loop.plan:decide", "Compare the rows with the submissions in the ledger."),
        Step("loop.plan:take_steps", "Tune, sample, price and forecast."),
        Step("loop.plan:commit", "Check the limits, and compare the knowledge with the ledger once more."),
        Step("storage.ledger.submissions:Submissions.open", "Store the submission and its shards, in one transaction."),
        Step("engine.engine:Engine.submit", "Send the submission."),
        Step("loop.submit_queue:Dispatcher.send", "Choose the shards that go now, and those that go together."),
        Step("loop.budget:Allowance.reserve", "Reserve the highest cost of these shards."),
        Step("loop.submit:Sender.send", "Record the intent, and send one batch."),
        Step("loop.receipts:write_receipts", "Write the receipt, before the call."),
        Step("providers.openai.provider:OpenAIProvider.submit", "Upload the file, and create the batch."),
    ),
    "A tick of the sensor": (
        Step("sensors.tick:run_tick", "Dagster's daemon calls the sensor."),
        Step("sensors.polling:poll_batches", "Choose the batches to ask for."),
        Step("loop.poll:Poller.poll", "Ask the provider for them."),
        Step("providers.openai_api.batches:read_batch", "Read the vendor's batch as a report."),
        Step("sensors.readiness:find_ready", "Request a run for each submission with an ended batch."),
    ),
    "A run of the labels' asset": (
        Step("assets.labels:labels_asset.<locals>.collect", "Dagster calls the asset."),
        Step("engine.engine:Engine.advance", "Take the submission as far as it goes."),
        Step("loop.settlement:Settler.settle", "Poll, collect, and send the next retry round, if there is one."),
        Step("providers.openai.provider:OpenAIProvider.fetch", "Download the result lines, into the raw file."),
        Step("core.results:Reconciler.tables", "Read the lines: each request has one result."),
        Step("loop.label:LabelAssembler.settlement", "Count the outcomes of all rounds."),
        Step("storage.ledger.submissions:Submissions.settle_all", "Record that the submission is complete."),
        Step("engine.engine:Engine.assembler", "Join the results with the rows: labels and rejects."),
        Step("label_stats:LabelStats.add", "Count them for the checks and the metadata."),
        Step("assets.output:OutputWriter.write", "Store the tables through the IO manager."),
        Step("checks:Check.outcome", "Judge the partition."),
        Step("storage.ledger.submissions:Submissions.mark_delivered", "Record that the labels are materialized."),
    ),
}
"""The stages, each with its functions in the order in which a row enters them first."""


def walk() -> str:
    """Return the walk as numbered lists, one for each stage."""
    lines = []
    for stage, steps in WALK.items():
        lines += [f"**{stage}**", ""]
        for number, step in enumerate(steps, 1):
            module, _, name = step.function.partition(":")
            shown = name.partition(".<locals>")[0]
            lines.append(f"{number}. `{module}.{shown}`: {step.work}")
        lines.append("")
    return "\n".join(lines).strip()
