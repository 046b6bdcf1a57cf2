"""Keys with NUL, which PostgreSQL refuses: the pages of review show their rows, and do not ask a person about them."""

from __future__ import annotations

from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
from starlette.testclient import TestClient

from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

FORM = LabelForm("tickets", "id", {"properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]})
SENT = {"form_id": "a", "partition": "", "kind": "label", "answer_topic": '"bug"'}


def test_pages_with_nul_in_an_address_or_a_key_work_on_every_database_and_nothing_is_stored(ledger_url, tmp_path):
    pq.write_table(pa.table({"id": ["a\0b", "c"], "body": ["First", "Second"]}), tmp_path / "tickets.parquet")
    asset = StoredAsset("tickets", "tickets", "labels", "id", {"": str(tmp_path / "tickets.parquet")})
    with closing(Ledger(ledger_url)) as ledger:
        payloads = PayloadStore(str(tmp_path / "payloads"))
        deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: [asset], forms=[FORM])
        app = review_app(deployment, Door("X-User"), ["testserver"])
        client = TestClient(app, headers={"X-User": "ada", "Origin": "http://testserver"})
        assert "First" in client.get("/row/tickets?by=id&key=a%00b").text
        assert client.get("/prompts/%00").status_code == 404
        asked = client.get("/label/tickets?as=tickets").text
        assert "1 row left for you" in asked
        assert "Second" in asked
        for key in ("a%00b", "a\0b"):
            refused = client.post("/label/tickets?as=tickets", data={**SENT, "row_key": key})
            assert refused.status_code == 400
        assert ledger.judgments.read("test", "tickets") == []
