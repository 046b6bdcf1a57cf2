"""Any files of a settled cascade may be lost: plans answer, rows have one outcome each, and a person may ask again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cascade_faults import ROWS, answer, definition
from workspace import Workspace, billed, tickets

from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.testing.emulator import Emulator, WireFault

GONE = WireFault(kind="status", route="GET /v1/files/*", status=404, times=None)
NAMES = ("cascade.json", "manifest", ".requests.", ".ids.", ".raw.", ".results.")


@pytest.fixture
def workspace(tmp_path: Any) -> Iterator[Workspace]:
    with Emulator(answer=answer) as emulator:
        yield Workspace(tmp_path, emulator)


def outcomes(workspace: Workspace, submission_id: str) -> Counter[str]:
    """Return the number of rows by outcome, and check that each row has exactly one."""
    labeled = workspace.engine().labels(definition(), submission_id)
    keys = [*labeled.labels["ticket_id"].to_pylist(), *labeled.rejects["ticket_id"].to_pylist()]
    assert len(keys) == len(set(keys)) == ROWS
    submission = workspace.engine().ledger.submissions.get(submission_id)
    assert sum(submission.outcomes.values()) == submission.requests
    return Counter({"succeeded": labeled.labels.num_rows}) + Counter(labeled.rejects["llm_outcome"].to_pylist())


@pytest.mark.parametrize("has_vendor", [True, False], ids=["vendor_has_them", "vendor_has_none"])
@pytest.mark.parametrize("lost", [*NAMES, "all", "some"])
def test_files_of_a_settled_cascade_may_be_lost(workspace: Workspace, lost: str, has_vendor: bool) -> None:
    landed = workspace.run(definition(), tickets(ROWS)).submission.submission_id
    before = outcomes(workspace, landed)
    files = sorted(path for path in Path(workspace.tmp_path, "payloads").rglob("*") if path.is_file())
    named = [path for path in files if lost == "all" or lost in path.name]
    harmed = named if lost != "some" else random.Random(len(files)).sample(files, len(files) // 2)
    assert harmed
    for path in harmed:
        path.unlink()
    if not has_vendor:
        workspace.emulator.inject(GONE)
    paid = len(billed(workspace))
    preview = workspace.engine().preview(definition(), tickets(ROWS))
    workspace.engine().preview(definition(), tickets(ROWS + 1))
    decided = all("cascade.json" not in path.name for path in harmed)
    if decided:
        assert preview.known is not None
        assert workspace.engine().plan(definition(), tickets(ROWS)).submission_id == landed
        kept = outcomes(workspace, landed)
    else:
        # The answers that are left decide again which model's label a row has.
        with pytest.raises(PayloadError, match=r"aterialize the asset that submits 'ticket_labels' again"):
            workspace.engine().labels(definition(), landed)
        planned = workspace.engine().plan(definition(), tickets(ROWS)).submission_id
        assert planned != landed
        if not has_vendor and lost == "all":
            assert preview.to_send >= ROWS
            return
        assert preview.to_send == 0
        workspace.engine().submit(definition(), planned)
        landed = workspace.finish(definition(), planned).submission.submission_id
        kept = outcomes(workspace, landed)
    assert len(billed(workspace)) == paid
    if has_vendor:
        assert kept == before
    workspace.emulator.clear_faults()
    planned = workspace.engine().plan(definition(), tickets(ROWS), again=True).submission_id
    workspace.engine().submit(definition(), planned)
    workspace.finish(definition(), planned)
    assert outcomes(workspace, planned) == before
    # Answers stored here or at the vendor are not paid again.
    if kept == before:
        assert len(billed(workspace)) == paid
