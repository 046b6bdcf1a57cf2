"""Two teams share a ledger, a bucket and an account, each in a namespace. Nothing that one does changes the other's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import openai
import pytest
from workspace import Workspace, billed, labeling, tickets

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Engine
from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import find_conditions
from dagster_llm_batch.testing.emulator import DEFAULT_KEY
from dagster_llm_batch.upkeep.uploads import UploadRemover

OWN, OTHER = "sales", "support"
FIRST, LATER = labeling(), labeling(prompt=Prompt(user="{{ body }}"))


@pytest.fixture
def shared(workspace: Workspace) -> dict[str, list[str]]:
    """Give each team the same: an old submission, a newer one in its place, one in flight, and one that is planned."""
    found: dict[str, list[str]] = {}
    for namespace in (OWN, OTHER):
        found[namespace] = []
        for definition in (FIRST, LATER):
            engine = workspace.engine(namespace)
            one = engine.plan(definition, tickets(3)).submission_id
            engine.submit(definition, one)
            workspace.emulator.settle()
            assert engine.advance(definition, one).is_settled
            engine.ledger.submissions.mark_delivered(one)
            found[namespace].append(one)
    for namespace in (OWN, OTHER):
        engine = workspace.engine(namespace)
        for partition in ("in flight", "planned"):
            found[namespace].append(engine.plan(FIRST, tickets(3, start=5), partition=partition).submission_id)
        engine.submit(FIRST, found[namespace][2])
    return found


def everything(workspace: Workspace, engine: Engine, submissions: list[str]) -> dict[str, Any]:
    """Return what a team has in the ledger, in the bucket and at the provider."""
    ledger, root = engine.ledger, workspace.tmp_path / "payloads"
    shards = [shard for one in submissions for shard in ledger.shards.of_submission(one)]
    client = openai.OpenAI(api_key=DEFAULT_KEY, base_url=workspace.emulator.openai_base_url, max_retries=0)
    batches = [client.batches.retrieve(shard.batch.batch_id) for shard in shards if shard.batch.batch_id]
    ids = [file for batch in batches for file in (batch.input_file_id, batch.output_file_id) if file]
    facts = read_facts(engine, None, ())
    return {
        "submissions": [ledger.submissions.get(one) for one in submissions],
        "listed": ledger.submissions.list_all(engine.namespace),
        "events": [ledger.events.of_submission(one) for one in submissions],
        "shards": shards,
        "tombstones": ledger.tombstones.list_all(engine.namespace),
        "costs": ledger.money.shard_costs(engine.namespace),
        "files": {name: (root / name).read_bytes() for name in workspace.files() if name.startswith(engine.namespace)},
        "batches": [(batch.id, batch.status) for batch in batches],
        "at the provider": [client.files.content(file).read() for file in ids],
        "conditions": [condition.kind for condition in find_conditions(facts)],
    }


def test_what_one_team_erases_prunes_and_cancels_leaves_all_of_the_other_team(workspace, shared):
    workspace.skipped += timedelta(days=60)
    own, other = workspace.engine(OWN), workspace.engine(OTHER)
    before = everything(workspace, other, shared[OTHER])
    assert len(before["at the provider"]) == 5
    own.eraser.add_tombstones(FIRST.asset, ["t1"], None)
    own.eraser.erase(FIRST.asset)
    assert own.eraser.erase_at_providers(FIRST.asset)
    uploads = UploadRemover(own.deployment)
    removed = uploads.remove_files().batches + uploads.remove_results(timedelta(days=1)).batches
    assert removed
    assert own.prune(timedelta(days=1), timedelta(days=1), delete=True).replaced.keys() == {shared[OWN][0]}
    own.cancel(shared[OWN][2])
    own.cancel(shared[OWN][3])
    after = everything(workspace, other, shared[OTHER])
    assert after == before
    # Erased rows of one team are rows of the other, and its answers are reused without a request.
    paid = len(billed(workspace))
    again = other.plan(LATER, tickets(3))
    assert other.submit(LATER, again.submission_id).is_settled
    assert other.labels(LATER, again.submission_id).labels.num_rows == 3
    assert len(billed(workspace)) == paid
