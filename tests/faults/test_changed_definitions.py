"""Each vendor's replies are read by the definition that requested them, even if the code has another one by now."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import BaseModel

from dagster_llm_batch.core.prompt import Prompt
from tests.faults.vendor_workspace import Servers, VendorWorkspace, rows
from tests.faults.vendors import VENDORS, Vendor


class Mood(BaseModel):
    mood: float


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name)
def test_replies_are_read_by_the_definition_that_asked(running: Servers, vendor: Vendor, tmp_path: Path) -> None:
    with closing(VendorWorkspace(vendor, running, tmp_path, 10.0)) as workspace:
        workspace.clear()
        old = workspace.definition
        new = replace(old, response=Mood, prompt=Prompt(user="How? {{ text }}"), params={**old.params, "top_p": 0.5})
        submission_id = workspace.engine().plan(old, rows()).submission_id
        workspace.engine().submit(old, submission_id)
        workspace.settle()
        status = workspace.engine().advance(new, submission_id)
        assert status.submission.outcomes == {"succeeded": len(rows())}
        by_new = workspace.engine().labels(new, submission_id, reread=True).labels
        by_old = workspace.engine().labels(old, submission_id, reread=True).labels
        assert by_new.equals(by_old)
        assert by_new["topic"].null_count == 0
