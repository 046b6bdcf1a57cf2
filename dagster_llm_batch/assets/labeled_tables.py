"""Labels and rejects of one partition: tables in memory, or streams that are spooled to the local disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from dagster_llm_batch.label_stats import LabelStats
from dagster_llm_batch.storage.payloads import temporary_folder

if TYPE_CHECKING:
    from dagster_llm_batch.core.label_join import Labeled
    from dagster_llm_batch.engine.engine import Engine, KnownSubmission

__all__ = ["LabeledTables", "labeled_streams", "labeled_tables", "spool"]


@dataclass(frozen=True)
class LabeledTables:
    """Labels and rejects of one partition. A stream can be read once, and only while `labeled_streams` is open."""

    labels: pa.Table | pa.RecordBatchReader
    rejects: pa.Table | pa.RecordBatchReader
    stats: LabelStats


def labeled_tables(
    engine: Engine, known: KnownSubmission, look: Callable[[pa.Table], None], *, run_id: str, reread: bool
) -> LabeledTables:
    """Return labels and rejects of a settled submission. `look` is called with the labels."""
    labeled = engine.assembler(known, reread=reread).labels(run_id=run_id, reread=reread)
    stats = LabelStats(known.sent.labeling)
    stats.add(labeled)
    look(labeled.labels)
    return LabeledTables(labeled.labels, labeled.rejects, stats)


@contextmanager
def labeled_streams(
    engine: Engine, known: KnownSubmission, look: Callable[[pa.Table], None], *, run_id: str, reread: bool
) -> Iterator[LabeledTables]:
    """Yield the same as streams, spooled to the local disk. The order of their rows is undefined.

    `look` is called with each part of the labels before the streams can be read.
    """
    stats = LabelStats(known.sent.labeling)
    with temporary_folder() as folder, ExitStack() as files:
        paths = [str(folder / name) for name in ("labels", "rejects")]
        batches = engine.assembler(known, reread=reread).batches(run_id=run_id, reread=reread)
        with closing(batches) as parts:
            # After an error such as a full disk, the files are deleted before the next partition.
            spool(parts, paths, stats, look)
        labels, rejects = (pa.ipc.open_stream(files.enter_context(pa.OSFile(path))) for path in paths)
        yield LabeledTables(labels, rejects, stats)


def spool(
    parts: Iterable[Labeled], paths: list[str], stats: LabelStats, look: Callable[[pa.Table], None] | None = None
) -> None:
    """Write labels and rejects into a file each. `stats` is complete before the IO manager stores either of them."""
    with ExitStack() as files:
        writers: list[pa.RecordBatchWriter] = []
        for part in parts:
            stats.add(part)
            if look is not None:
                look(part.labels)
            # Without this, each slice would become a batch.
            tables = [table.combine_chunks() for table in (part.labels, part.rejects)]
            if not writers:
                sinks = [files.enter_context(pa.OSFile(path, "wb")) for path in paths]
                made = zip(sinks, tables, strict=True)
                writers = [files.enter_context(pa.ipc.new_stream(sink, table.schema)) for sink, table in made]
            for writer, table in zip(writers, tables, strict=True):
                writer.write_table(table)
            # Free their memory before the next part is made.
            del part, tables
