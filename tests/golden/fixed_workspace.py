"""A workspace with fixed ids, clock and answers of vendors."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from dagster_llm_batch.testing.emulator import ManualClock
from tests.golden.package import Deployment, Engine, Ledger, PayloadStore
from tests.golden.page import Page, as_json

START = 1_767_323_045.5
"""2026-01-02 03:04:05.5 UTC. The half is exact in a float."""
# Keys of a stored decision in the metadata of its table.
_DECISIONS = (b"llm_batch.near", b"llm_batch.relabel")


class FixedWorkspace:
    """One deployment in a folder. Time stands still unless a test moves it; ids are `ids` and a number."""

    def __init__(self, folder: Path, ledger_url: str | None = None, start: float = START, ids: str = "s") -> None:
        self.folder = folder
        self.clock = ManualClock(start)
        self.providers: dict[str, Any] = {}
        self._ledger_url = ledger_url or f"sqlite:///{folder}/ledger.sqlite"
        self._ids = (f"{ids}{number}" for number in count(1))
        self._engines: list[Engine] = []

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def engine(self) -> Engine:
        """Return a new engine, like a new process."""
        engine = Engine(
            Deployment(
                self.providers,
                Ledger(self._ledger_url, clock=self.now),
                PayloadStore(str(self.folder / "payloads")),
                "golden",
                clock=self.now,
                sleep=lambda _: None,
                transfers_at_once=1,
                new_id=lambda: next(self._ids),
            )
        )
        self._engines.append(engine)
        return engine

    def close(self) -> None:
        for engine in self._engines:
            engine.ledger.close()
        self._engines.clear()

    def text(self, tables: dict[str, pa.Table], versions: dict[str, Any]) -> str:
        """Return the text of everything stored, and of these tables: sections with one line per thing."""
        page = Page()
        page.write("versions", [as_json(versions)])
        for name, rows in self._ledger():
            page.write_rows(f"ledger {name}", rows)
        self._write_payloads(page)
        for name, table in tables.items():
            page.write_table(name, table)
        return page.text

    def _ledger(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Every row of every table, in the order of their first column."""
        connection = sqlite3.connect(self.folder / "ledger.sqlite")
        connection.row_factory = sqlite3.Row
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        for (name,) in sorted(map(tuple, names)):
            rows = [self._checked(dict(row)) for row in connection.execute(f"SELECT * FROM {name} ORDER BY 1")]
            # The files must not name the machine.
            yield name, [row for row in rows if (name, row.get("name")) != ("lease", "machine")]
        connection.close()

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        """Compare a file's digest with the file, and leave it out, since it depends on the compressor's version."""
        if "digest" in row and (self.folder / "payloads" / row["path"]).exists():
            with PayloadStore(str(self.folder / "payloads")).checked(row["path"], row["digest"]):
                row["digest"] = f"{row['digest'].rpartition(':')[0]}: that of the file"
        return row

    def _write_payloads(self, page: Page) -> None:
        """Write every stored file. Raw lines are only counted: they are given, and the results show them."""
        root = self.folder / "payloads"
        payloads = PayloadStore(str(root))
        for path in sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()):
            if path.endswith(".parquet"):
                page.write_table(path, payloads.read_table(path))
                # The decision of an audit.
                for key, settings in sorted(payloads.table_metadata(path).items()):
                    if key in _DECISIONS:
                        page.write(f"{path} {key.decode()}", [settings.decode()])
            elif ".ids." in path or "/document-" in path:
                with payloads.reader(path) as file:
                    page.write(path, [hashlib.sha256(file.read()).hexdigest()])
            elif ".sent." in path:
                [line] = payloads.lines(path)
                page.write(path, [_receipt(json.loads(line))])
            elif ".raw." in path:
                page.write(path, [f"{sum(1 for _ in payloads.lines(path))} lines"])
            elif path.endswith("/cascade.json"):
                page.write(path, [line.decode().rstrip("\n") for line in payloads.lines(path)])
            else:
                page.write_requests(path, [line.decode() for line in payloads.lines(path)])


def _receipt(receipt: dict[str, Any]) -> str:
    """Return the content of a receipt that the ledger lacks."""
    submission, shard = receipt["submission"], receipt["shard"]
    return as_json(
        [submission["submission_id"], shard["shard_id"], shard["state"], shard["sent_at"], *receipt["batch"]]
    )
