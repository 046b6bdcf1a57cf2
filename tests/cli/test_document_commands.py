"""Uploaded documents in `plan`, `prune`, `doctor` and `erase`. The PDFs are made by `pdfs`."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from dagster_llm_batch.testing.emulator import RowFault

ROWS = """
import io

from pypdf import PdfWriter


def paper(name):
    writer, file = PdfWriter(), io.BytesIO()
    writer.add_blank_page(width=595, height=842)
    writer.add_metadata({"/Subject": name})
    writer.write(file)
    return file.getvalue()


def rows(context):
    return [{"ticket_id": f"all-{n}", "body": "What is it?", "paper": paper("ab"[n // 2])} for n in range(3)]
"""


@pytest.fixture
def project(project):
    source = project.file.read_text()
    start = source.index("def rows(context)")
    source = source[:start] + ROWS.strip() + "\n\n\n" + source[source.index("@dg.asset") :]
    project.file.write_text(source)
    project.change('user="{{ body }}")', 'user="{{ body }}", documents=["paper"], documents_as="upload")')
    project.change("asset_labels = llm", "asset_labels = [] and llm")
    return project


def age(project, days):
    """Move the last use of all documents back."""
    with closing(sqlite3.connect(project.ledger)) as connection:
        connection.execute("UPDATE upload SET needed_at = datetime(needed_at, ?) || '.000000'", (f"-{days} days",))
        connection.commit()


def documents_there(project):
    files = [file.filename for file in project.emulator.books.files if file.filename.endswith(".pdf")]
    with project.engine() as engine:
        return len(engine.provider("openai").find_documents(set(files)))


def test_plan_counts_the_uploads_and_prune_deletes_them_when_nothing_needs_them(project):
    [plan] = project.json("plan", "ticket_labels")["plans"]
    counts = (plan["documents"], plan["documents_to_upload"], plan["document_bytes_to_upload"])
    assert counts[:2] == (2, 2)
    assert f"2 of 2, {counts[2]:,} bytes; uploads are not billed" in project.on_file("plan", "ticket_labels").stdout
    project.land()
    assert documents_there(project) == 2
    assert project.json("prune", "--delete", "--yes")["documents"] == 0
    [found] = [one for one in project.json("doctor")["findings"] if one["check"] == "documents"]
    assert found["verdict"] == "ok"
    assert f"2 documents ({counts[2]:,} bytes) in openai's storage" in found["said"]
    age(project, 5)
    assert "At providers 2 documents are to go." in project.on_file("prune").stdout
    # A command without definitions has no providers.
    assert "2 documents" not in project.cli("prune", *project.by_address).stdout
    warned = [one for one in project.json("doctor")["findings"] if one["check"] == "documents"][-1]
    assert (warned["verdict"], "2 documents that no submission needs" in warned["said"]) == ("warning", True)
    told = project.on_file("prune", "--delete", input="y\n")
    assert "and at providers 2 documents?" in told.output
    assert "At providers 2 documents were deleted." in told.output
    assert documents_there(project) == 0
    assert "documents" not in {one["check"] for one in project.json("doctor")["findings"]}


def test_plan_and_doctor_count_the_uploads_of_a_fallback_at_its_own_vendor(project):
    project.change("import (\n", "import (\n    AnthropicBatchResource, Fallback, Resend,\n")
    fallback = 'Fallback("anthropic/claude-haiku-4-5", params={"max_tokens": 50})'
    project.change('"max_cost_usd": 1,', f'"max_cost_usd": 1, "resend": Resend(fallback=[{fallback}]),')
    account = f'api_key=dg.EnvVar("OPENAI_API_KEY"), base_url="{project.emulator.anthropic_base_url}"'
    project.change("openai=OpenAI", f"anthropic=AnthropicBatchResource({account}), openai=OpenAI")
    [plan] = project.json("plan", "ticket_labels")["plans"]
    size = plan["document_bytes_to_upload"]
    assert plan["documents_to_upload_later"] == [{"provider": "anthropic", "documents": 2, "bytes": size}]
    told = " ".join(project.on_file("plan", "ticket_labels").stdout.split())
    assert f"2 of 2, {size:,} bytes; at most 2, {size:,} bytes, at anthropic; uploads are not billed" in told
    project.emulator.inject(RowFault(status_code=400, times=1))
    project.land()
    found = {one["said"] for one in project.json("doctor")["findings"] if one["check"] == "documents"}
    assert len([said for said in found if "in openai's storage" in said]) == 1
    assert len([said for said in found if said.startswith("1 document (") and "in anthropic's storage" in said]) == 1


def test_documents_of_another_account_are_named_by_doctor(project):
    project.land()
    with closing(sqlite3.connect(project.ledger)) as connection:
        connection.execute("UPDATE upload SET account = 'closed'")
        connection.commit()
    [found] = [one for one in project.json("doctor")["findings"] if one["check"] == "documents"]
    assert found["verdict"] == "warning"
    assert "account closed, which is not configured: they stay until they expire" in found["said"]


def test_erase_names_the_documents_here_and_at_the_vendor(project):
    project.land()
    shown = project.json("erase", "ticket_labels", "--key", "all-2")
    assert len([path for path in shown["found"][0]["files"] if "/document-" in path]) == 1
    by_address = project.cli(
        "erase", "ticket_labels", "--key", "all-2", "--delete", "--yes", *project.by_address, code=4
    ).stdout
    assert "of openai: not deleted there: the providers are unknown here" in by_address
    assert documents_there(project) == 2
    told = project.on_file("erase", "ticket_labels", "--delete", "--yes").stdout
    assert len([line for line in told.splitlines() if line.startswith("Document file-")]) == 1
    assert "of openai: deleted there." in told
    assert documents_there(project) == 1
    assert len([path for path in project.files() if "/document-" in path]) == 1
