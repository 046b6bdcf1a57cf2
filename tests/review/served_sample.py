"""Serves a sample of tickets to judge, in a process that a test can kill: FOLDER PORT."""

from __future__ import annotations

import sys

from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.server import review_app, serve
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

FORM = LabelForm("tickets", "id", {"properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]})


def main(folder: str, port: str) -> None:
    asset = StoredAsset("tickets", dataset="tickets", row_key="id", files={"": f"{folder}/tickets.parquet"})
    ledger, payloads = Ledger(f"sqlite:///{folder}/ledger.sqlite"), PayloadStore(f"{folder}/payloads")
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: [asset], forms=[FORM])
    # Two browsers of one person would be one annotator, so each test's browser sends its own name.
    serve(review_app(deployment, Door(user_header="X-User")), int(port), lambda url: print(url, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
