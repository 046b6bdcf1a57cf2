"""Row data is data, whatever it looks like. Files are for their owner; servers listen only on this machine."""

import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from dagster_llm_batch import Limits, LLMBatchResource, OpenAIBatchResource, Prompt, llm_batch_assets
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    BatchFault,
    Emulator,
    RowFault,
    WireFault,
    local_gcs,
    local_s3,
)
from tests.faults.vendor_workspace import Servers, VendorWorkspace
from tests.faults.vendors import VENDORS

HOSTILE = [
    "{{ 7 * 7 }} {{ row.__class__.__mro__ }}",
    "{% for c in ().__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
    "{input} {output} {0.__class__} %s %n ${HOME} $(id) `id`",
    "../../../etc/passwd",
    "/etc/passwd\0.png",
    "file:///etc/passwd",
    "\x1b[2J\x1b]8;;http://127.0.0.1/\x07link\x1b]8;;\x07\x1b[31mred",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![x](http://127.0.0.1/x.png) | a | **b** ```",
    "'; DROP TABLE shard; --",
    "\u202egnp.exe\u2028\u2029\r\n\t",
    '{"custom_id": "forged"}\n{"custom_id": "forged"}',
    "=1+1 @SUM(A1) +1 -1",
]


def test_rows_that_look_like_code_paths_or_markup_reach_the_llm_and_come_back_as_they_are(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(body: dict[str, Any], _endpoint: str) -> str:
        asked.append(body["messages"][-1]["content"])
        return f"You said {asked[-1]}"

    root = tmp_path / "payloads"
    hostile = pl.DataFrame({"id": HOSTILE, "body": HOSTILE})
    definition = Labeling(
        asset=HOSTILE[3],
        model="openai/gpt-4o",
        key="id",
        prompt=Prompt(user="{{ body }}"),
        response=None,
        keep=["body"],
        limits=Limits(max_requests_per_batch=5),
    )
    with Emulator(answer=answer) as emulator:
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
        ledger = Ledger(tmp_path / "ledger.sqlite")
        engine = Engine(
            Deployment({"openai": provider}, ledger, PayloadStore(str(root)), HOSTILE[5], sleep=lambda _: None)
        )
        for partition in HOSTILE[3:7]:
            if "\0" in partition:  # PostgreSQL cannot store such a text, and a name is stored exactly or is rejected
                with pytest.raises(LedgerError, match=r"U\+0000, which databases cannot store"):
                    engine.plan(definition, hostile, partition=partition)
                continue
            submission = engine.plan(definition, hostile, partition=partition)
            engine.submit(definition, submission.submission_id)
            emulator.settle()
            status = engine.advance(definition, submission.submission_id)
            assert status.submission.outcomes == {"succeeded": len(HOSTILE)}
            labels = engine.labels(definition, submission.submission_id).labels.to_pylist()
            assert {row["text"] for row in labels} == {f"You said {text}" for text in HOSTILE}
            assert {row["id"]: row["body"] for row in labels} == {text: text for text in HOSTILE}
        ledger.close()
    assert sorted(set(asked)) == sorted(HOSTILE)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(root) or path.name.startswith("ledger.sqlite") for path in files)
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", part) for f in files for part in f.relative_to(tmp_path).parts)


@pytest.mark.parametrize(
    "fault",
    [
        WireFault(kind="status", route="POST /v1/batches", status=400, message=HOSTILE[6]),
        WireFault(kind="status", route="POST /v1/files", status=401, message=HOSTILE[6]),
        WireFault(
            kind="status", route="POST /v1/files", status=429, message=HOSTILE[6], times=None, retry_after="0.01"
        ),
        BatchFault(kind="fails", code="invalid_request", message=HOSTILE[6]),
        RowFault(status_code=400, message=HOSTILE[6]),
    ],
    ids=["create", "credentials", "busy", "batch", "rows"],
)
def test_what_a_vendor_quotes_of_a_row_steers_no_terminal(capfd: Any, fault: Any) -> None:
    def tickets(_context: Any) -> pl.DataFrame:
        return pl.DataFrame({"id": HOSTILE, "text": HOSTILE})

    assets = llm_batch_assets(
        name="labels", rows=tickets, key="id", prompt=Prompt(user="{{ text }}"), model="openai/gpt-4o"
    )
    with Emulator(faults=[fault]) as emulator, dg.DagsterInstance.ephemeral() as instance:
        openai = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
        given = {"resources": {"llm_batch": LLMBatchResource(openai=openai)}, "instance": instance}
        said = []
        for names in (["labels_batch"], ["labels", "labels_rejects"]):
            result = dg.materialize(assets, selection=names, raise_on_error=False, **given)
            said += [str(event.message) for event in result.all_events]
            emulator.settle()
    told = "\n".join([*said, *capfd.readouterr()])
    assert "link" in told or not isinstance(fault, WireFault)  # the others report in the table of rejects
    assert "\x1b[2J" not in told
    assert "\x1b]8;;" not in told


@pytest.mark.parametrize("name", ["openai", "command"])
def test_files_are_for_their_owner_alone_under_the_usual_umask(tmp_path: Path, name: str) -> None:
    vendor = next(vendor for vendor in VENDORS if vendor.name == name)
    before = os.umask(0o022)
    try:
        workspace = VendorWorkspace(vendor, Servers("", ""), tmp_path, 10.0)
        assert workspace.run([]).outcomes == {"succeeded": 12}
        workspace.close()
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.name not in ("faults", "answered.jsonl")]
    assert len(made) > 5
    readable = [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077]
    shielded = [path for path in readable if any(not parent.stat().st_mode & 0o077 for parent in path.parents)]
    assert readable == shielded


def listening() -> set[str]:
    """Return the addresses on which this process and its children listen."""
    inodes = {inode for pid in family(os.getpid()) for inode in sockets_of(pid)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                words = fields[1].partition(":")[0]
                data = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
                found.add(socket.inet_ntop(socket.AF_INET if table == "tcp" else socket.AF_INET6, data))
    return found


def family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            yield from family(int(child))


def sockets_of(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_the_emulator_and_the_servers_beside_it_listen_on_loopback_alone() -> None:
    before = listening()
    with (
        local_s3() as s3_url,
        local_gcs() as gcs_url,
        Emulator(s3_url=s3_url, gcs_url=gcs_url),
    ):
        assert listening() - before <= {"127.0.0.1"}
        assert "127.0.0.1" in listening()
