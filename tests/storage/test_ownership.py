"""Foreign files and batches stay, whatever their names are; ours are deleted by their record."""

from __future__ import annotations

import ast
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dagster_llm_batch
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

ROWS = pa.table({"id": [f"t{n}" for n in range(4)], "text": [f"Ticket number {n}." for n in range(4)]})
MONTH = timedelta(days=30)


def definition(prompt: str = "{{ text }}") -> Labeling:
    return Labeling(asset="labels", model="openai/gpt-4o", key="id", prompt=Prompt(user=prompt), response=None)


class Site:
    """A namespace with three submissions: a replaced one, a pruned one, and one that stays."""

    def __init__(self, folder: Path, root: str, **options: Any) -> None:
        self.folder, self.root, self.options = folder, root, options
        self.skipped = timedelta()
        self.pruned = ""

    def engine(self) -> Engine:
        def now() -> datetime:
            return datetime.now(UTC) + self.skipped

        provider = OpenAIProvider(DEFAULT_KEY, "http://127.0.0.1:9", timeout_seconds=1.0)
        ledger = Ledger(self.folder / "ledger.sqlite", clock=now)
        payloads = PayloadStore(self.root, **self.options)
        return Engine(Deployment({"openai": provider}, ledger, payloads, "prod", clock=now, sleep=lambda _: None))

    def fill(self) -> None:
        with Emulator() as emulator:
            texts, other = "{{ text }}", "Say: {{ text }}"
            for partition, prompt in (("2026-02", texts), ("2026-01", texts), ("2026-01", other)):
                engine = self.engine()
                engine.deployment.providers["openai"] = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)  # type: ignore[index]
                submission = engine.plan(definition(prompt), ROWS, partition=partition)
                while not engine.advance(definition(prompt), submission.submission_id).is_settled:
                    emulator.settle()
                engine.ledger.submissions.mark_delivered(submission.submission_id)
                self.pruned = self.pruned or submission.submission_id
        # Leave the state of a prune that was killed after its first file.
        engine.ledger.submissions.mark_pruned(self.pruned, files=1, size=1)
        engine.payloads.delete(engine.ledger.submissions.get(self.pruned).manifest)

    def write(self, path: str, content: bytes) -> None:
        store: Any = PayloadStore(self.root, **self.options)
        full = f"{store._root.path.rstrip('/')}/{path}"
        if "://" in self.root:
            store._fs.pipe_file(full, content)
        else:
            Path(full).parent.mkdir(parents=True, exist_ok=True)
            Path(full).write_bytes(content)

    def read(self) -> dict[str, bytes]:
        """Return all stored files, by path."""
        store: Any = PayloadStore(self.root, **self.options)
        root = store._root.path.rstrip("/")
        return {file.path: store._fs.cat_file(f"{root}/{file.path}") for file in store.files("prod")}

    def do_all(self) -> None:
        """Do everything that deletes: erase an existing key and an unknown one, prune, and run the schedule's work."""
        self.skipped = timedelta(days=400)
        for key in ("t1", "no such key"):
            eraser = self.engine().eraser
            eraser.add_tombstones("labels", [key], None)
            assert eraser.erase("labels") == []
            eraser.erase_left_behind()
        self.engine().prune(MONTH, MONTH, delete=True)
        self.engine().prune(timedelta(days=1), delete=True)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("ownership")
    site = Site(folder, str(folder / "payloads"))
    site.fill()
    return site


def copied(site: Site, folder: Path) -> Site:
    shutil.copytree(site.folder, folder, dirs_exist_ok=True)
    made = Site(folder, str(folder / "payloads"))
    made.pruned = site.pruned
    return made


HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
OWN_NAMES = [
    "manifest.parquet", "cascade.json", "erasing.ids.lz4", "wave-1-0000.requests.jsonl.lz4", "wave-1-0000.ids.lz4",
    "wave-1-0000.raw.jsonl.zst", "wave-1-0000.results.parquet", "theirs.sent.zst", "wave-1-0000.sofar.jsonl.zst",
    "wave-2-0003.requests.jsonl.lz4", "wave-2-0003.ids.lz4", "wave-1-0000.4.requests.jsonl.lz4",
    "fallback-00ab.jsonl.zst", "train.parquet", "notes.md", "part-0.parquet",
]  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(OWN_NAMES),
    HEX.map(lambda text: f".{text}.tmp"),
    HEX.map(lambda text: f"part-{text}.parquet"),
    HEX.map(lambda text: f"apart-{text}.parquet"),
    HEX.map(lambda text: f"{text}.parquet"),
)
SEGMENTS = st.one_of(st.sampled_from(["labels", "gold", "2026-01", "2026-02", "merged", "v1"]), HEX)


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"llm_request_id": ["0" * 40], "text": ["theirs"]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_foreign_files_of_any_name_at_any_depth_stay_byte_for_byte(
    filled: Site, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Draw many names and depths, and take a deployment through its life for each."""
    site = copied(filled, tmp_path_factory.mktemp("planted"))
    before = site.read()
    own_folders = sorted({path.rpartition("/")[0] for path in before})
    planted: dict[str, bytes] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        name = data.draw(NAMES)
        folder = data.draw(
            st.one_of(
                st.lists(SEGMENTS, max_size=5).map(lambda parts: "/".join(["prod", *parts])),
                st.sampled_from(own_folders).map(lambda own: own + "/deeper"),
                # A user's copy of a submission's folder.
                st.sampled_from(own_folders).map(lambda own: f"prod/backup/2026-01/{own.rpartition('/')[2]}"),
                st.just("prod/labels/2026-01/merged"),
                *([] if name.startswith("wave-1-") else [st.sampled_from(own_folders)]),
            )
        )
        bodies = [st.binary(max_size=64), st.just(parquet())]
        if folder not in own_folders and not folder.endswith("merged"):
            bodies.append(st.sampled_from(sorted(before.values())))
        # A foreign file in the place of our own record is reported as damaged, and ends the erasure.
        is_record = folder in own_folders and name in ("manifest.parquet", "erasing.ids.lz4")
        if (path := f"{folder}/{name}") not in before and not is_record:
            planted[path] = data.draw(st.one_of(bodies))
    for path, content in planted.items():
        site.write(path, content)
        os.utime(Path(site.root) / path, (1, 1))
    site.do_all()
    after = site.read()
    assert {path: after.get(path) for path in planted} == planted
    # All of our files that are due are gone.
    assert [path for path in after.keys() - planted.keys() if site.pruned in path] == []
    assert len(after.keys() - planted.keys()) < len(before)


def test_a_foreign_file_where_an_erasure_keeps_its_record_stays_and_is_told(filled: Site, tmp_path: Path) -> None:
    site = copied(filled, tmp_path)
    folder = next(path.rpartition("/")[0] for path in site.read() if path.endswith("manifest.parquet"))
    site.write(f"{folder}/erasing.ids.lz4", parquet())
    eraser = site.engine().eraser
    eraser.add_tombstones("labels", ["t1"], None)
    left = eraser.erase("labels")
    assert all("damaged" in one.reason or "decompress" in one.reason for one in left)
    assert [one.submission.submission_id for one in left] == [folder.rpartition("/")[2]]
    assert site.read()[f"{folder}/erasing.ids.lz4"] == parquet()


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_foreign_objects_in_a_bucket_stay_byte_for_byte(request: Any, tmp_path: Path, kind: str) -> None:
    url, options = request.getfixturevalue(kind)
    site = Site(tmp_path, f"{url}/{uuid.uuid4().hex}", **options)
    site.fill()
    own = sorted({path.rpartition("/")[0] for path in site.read()})
    folders = [*own, "prod/gold/2026-01/merged", "prod/labels/2026-01/merged", "prod/features/2026-01/v1", "prod/a/b"]
    names = [
        "notes.md",
        "train.parquet",
        "part-0.parquet",
        f"{'a' * 32}.parquet",
        f".{'b' * 32}.tmp",
        "fallback-0.jsonl.zst",
    ]
    planted = {f"{folder}/{name}": f"theirs: {name}".encode() for folder in folders for name in names}
    for path, content in planted.items():
        site.write(path, content)
    site.do_all()
    after = site.read()
    assert {path: after.get(path) for path in planted} == planted
    assert [path for path in after.keys() - planted.keys() if site.pruned in path] == []


def test_what_looks_like_ours_and_is_not_shown_to_be_is_listed(filled: Site, tmp_path: Path) -> None:
    site = copied(filled, tmp_path / "site")
    folder = site.engine().ledger.submissions.get(site.pruned).folder
    for path in (f"{folder}/notes.md", f"prod/features/2026-01/v1/part-{'0' * 32}.parquet"):
        site.write(path, b"theirs")
    site.skipped = timedelta(days=400)
    found = site.engine().prune(MONTH)
    assert {file.path for file in found.foreign} == {
        f"{folder}/notes.md",
        f"prod/features/2026-01/v1/part-{'0' * 32}.parquet",
    }
    assert len(found.replaced) == 1


def test_what_has_the_place_of_a_receipt_and_is_none_stops_an_erasure_and_stays(filled: Site, tmp_path: Path) -> None:
    site = copied(filled, tmp_path / "site")
    path = "prod/gold/2026-01/v1/wave-1-0000.sent.zst"
    site.write(path, b"theirs")
    # It may be the receipt of a batch that the ledger has no record of, and that is damaged.
    with pytest.raises(PayloadError, match=path):
        site.engine().eraser.erase("labels")
    assert site.read()[path] == b"theirs"


# Modules that delete in a payload store or at a provider, with the record that they use.
DELETES = {
    "files/ownership.py": "the rule itself",
    "upkeep/erase.py": "its own list of what it erases; a batch that `owns_batch` allows",
    "upkeep/uploads.py": "batches that the ledger has as uploaded and `owns_batch` allows",
    "files/document_files.py": "the documents that this plan writes",
    "files/shard_files.py": "the files of one shard, by its record",
    "files/request_files.py": "a request file that this plan writes",
    "files/request_writer.py": "the manifest and the spares that this plan writes",
    "files/request_parts.py": "part files that this plan has had written",
    "cascade/sampling.py": "the sample that this plan writes",
    "sharing/audit.py": "the near copies and the spare that this plan writes",
    "loop/collect.py": "the raw lines of one shard, by its record, which are damaged",
    "loop/realtime.py": "the answers so far of one shard, by its record",
    "loop/submit_queue.py": "receipt and answers so far of one shard, by its record",
    "files/share_files.py": "older answers that one submission keeps, by its name",
    "files/merged_results.py": "a copy that this process has written",
    "engine/label_files.py": "the files of a table of labels, right in its folder",
    "cli/doctor.py": "a probe that it has written",
    "telemetry.py": "hands on what it is called with",
    "cli/completion.py": "the file of names that it keeps for the shell, at its own place",
}
NO_STORE = ("testing/", "storage/", "providers/", "exports/", "distributed/", "review/")


def deletions() -> Iterator[tuple[str, int, str]]:
    """Yield each call that deletes in a payload store or at a provider: module, line, name."""
    root = Path(dagster_llm_batch.__file__).parent
    names = {"remove", "delete", "delete_request_file", "keep_only", "rm_file", "rmtree", "unlink"}
    for path in sorted(root.rglob("*.py")):
        module = str(path.relative_to(root))
        if module.startswith(NO_STORE):
            continue
        text = path.read_text()
        # Parsing every module would take too long for a quick test.
        if not any(f".{name}(" in text for name in names):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                yield module, node.lineno, node.func.attr


def test_who_removes_what_a_listing_gave_asks_the_rule() -> None:
    found = list(deletions())
    assert {module for module, _, _ in found} - {"io.py"} <= DELETES.keys()
    # The file was found by listing a folder, not by a record.
    assert {module for module, _, name in found if name == "remove"} <= {"files/ownership.py", "engine/label_files.py"}
    assert {module for module, _, name in found if name == "keep_only"} == {"io.py"}
    for module in ("upkeep/uploads.py", "upkeep/erase.py"):
        assert "owns_batch" in (Path(dagster_llm_batch.__file__).parent / module).read_text()
