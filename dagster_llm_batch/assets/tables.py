"""Labels and rejects on their way to the IO manager: as tables, or as streams of what no memory need hold."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from dagster_llm_batch.label_stats import LabelStats

if TYPE_CHECKING:
    from dagster_llm_batch.core.label_join import Labeled
    from dagster_llm_batch.engine import Labeling
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["LabeledTables", "labeled_tables", "spool"]


@dataclass(frozen=True)
class LabeledTables:
    """A stream can be read once, and where it was made."""

    labels: pa.Table | pa.RecordBatchReader
    rejects: pa.Table | pa.RecordBatchReader
    figures: LabelStats


@contextmanager
def labeled_tables(
    engine: Engine, labeling: Labeling, submission_id: str, *, run_id: str, reread: bool, as_streams: bool
) -> Iterator[LabeledTables]:
    """All rows of a settled submission. Streams give them in no particular order, and wait on the local disk."""
    figures = LabelStats(labeling)
    if not as_streams:
        labeled = engine.labels(labeling, submission_id, run_id=run_id, reread=reread)
        figures.add(labeled)
        yield LabeledTables(labeled.labels, labeled.rejects, figures)
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        paths = [str(Path(folder) / name) for name in ("labels", "rejects")]
        with closing(engine.label_batches(labeling, submission_id, run_id=run_id, reread=reread)) as parts:
            spool(parts, paths, figures)  # a full disk gets its files back before the next partition
        labels, rejects = (pa.ipc.open_stream(files.enter_context(pa.OSFile(path))) for path in paths)
        yield LabeledTables(labels, rejects, figures)


def spool(parts: Iterable[Labeled], paths: list[str], figures: LabelStats) -> None:
    """Write labels and rejects into a file each; `figures` tells of both before the first of them is stored."""
    with ExitStack() as files:
        writers: list[pa.RecordBatchWriter] = []
        for part in parts:
            figures.add(part)
            tables = [one.combine_chunks() for one in (part.labels, part.rejects)]  # else each slice is a batch
            if not writers:
                sinks = [files.enter_context(pa.OSFile(path, "wb")) for path in paths]
                made = zip(sinks, tables, strict=True)
                writers = [files.enter_context(pa.ipc.new_stream(sink, table.schema)) for sink, table in made]
            for writer, table in zip(writers, tables, strict=True):
                writer.write_table(table)
            del part, tables  # before the next is made
