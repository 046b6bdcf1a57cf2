"""A labeled table as a file, with all its columns: key, kept columns, response, and provenance (`llm_…`).

    parquet      one file, zstd
    csv          nested values as JSON; a text that a spreadsheet would take for a formula after an apostrophe
    jsonl        a line for each row; NaN and infinite numbers are null, since JSON lacks them
    huggingface  a folder for `datasets.load_from_disk`
    hub          a folder for `datasets.load_dataset`: Parquet and a card, as the Hugging Face Hub has data sets
    tfrecord     a `tf.Example` for each row, for TensorFlow's `TFRecordDataset`

In a `tf.Example`, numbers and truth values are int64 or float lists (32 bits: it has no others). Text and bytes are
bytes lists, and lists of these are lists. Money, times and nested values are text, like in JSON lines; a null has no
feature.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError, MissingExtraError
from dagster_llm_batch.exports.files import whole
from dagster_llm_batch.storage.ledger.records import Judgment

__all__ = [
    "FORMATS",
    "STREAMED",
    "count_formulas",
    "form_of",
    "json_line",
    "judgment_table",
    "write_csv",
    "write_table",
]

_Features = Mapping[str, tuple[list[Any], str]]
_ENDINGS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".tfrecord": "tfrecord"}


def write_table(table: Any, path: str | Path, form: str | None = None) -> int:
    """Write the rows of any kind of frame as one file, or folder, and return their number.

    Args:
        table: Labels, or any other frame.
        path: The path to write; it exists once it is complete. A folder must not exist yet.
        form: One of FORMATS; by default by the path's ending.

    Raises:
        ConfigError: No such format; or, as MissingExtraError, the extra `export` is not installed.
        InputError: Two columns have one name.
    """
    path = Path(path)
    form = form_of(path) if form is None else form
    if form not in FORMATS:
        raise ConfigError(f"There is no format {form!r}; the formats are {', '.join(FORMATS)}.")
    rows = _table(table)
    if form in STREAMED:
        with whole(path) as half, half.open("wb") as file:
            STREAMED[form](rows, file)
    elif form in _FOLDERS:
        if path.exists():
            raise ConfigError(f"There is a {path} already; a dataset is written into a new folder.")
        with whole(path) as half:
            _FOLDERS[form](rows, half)
    else:
        with whole(path) as half:
            _write_tfrecord(rows, half)
    return len(rows)


def judgment_table(judgments: Sequence[Judgment], key: str, fields: Sequence[pa.Field]) -> pa.Table:
    """Return human labels as a table, a row for each judgment that stands. `fields` are the response's columns.

    Its columns: `partition`, the row's key as text, `annotator`, `kind`, the answer, `comment`, `seconds`, `at`, and
    the draw of the row (`sample_…`), which gold must keep.
    """
    samples = dict.fromkeys(name for judgment in judgments for name in judgment.sample or {})
    rows = [
        {
            "partition": judgment.partition or None,
            key: judgment.row_key,
            "annotator": judgment.annotator,
            "kind": judgment.kind,
            **(judgment.answer or {}),
            "comment": judgment.comment,
            "seconds": judgment.seconds,
            "at": judgment.at,
            **(judgment.sample or {}),
        }
        for judgment in judgments
    ]
    texts = [pa.field(name, pa.string()) for name in ("partition", key, "annotator", "kind")]
    own = [
        pa.field("comment", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("at", pa.timestamp("us", "UTC")),
    ]
    drawn = [pa.field(name, pa.string() if name == "sample_partition" else pa.float64()) for name in samples]
    return pa.Table.from_pylist(rows, pa.schema([*texts, *fields, *own, *drawn]))


def form_of(path: Path) -> str:
    """Return the format that a file's ending names, else ConfigError."""
    try:
        return _ENDINGS[path.suffix]
    except KeyError:
        endings, forms = ", ".join(_ENDINGS), ", ".join(FORMATS)
        raise ConfigError(
            f"{path.name} has an unknown ending; known are {endings}. Or name the format: {forms}."
        ) from None


def json_line(value: Any) -> bytes:
    """Return one line of JSON, with null for numbers that JSON lacks."""
    plain = as_json(value)
    try:
        text = json.dumps(plain, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(plain), ensure_ascii=False, default=str, allow_nan=False)
    return text.encode() + b"\n"


def _without_nan(plain: Any) -> Any:
    """Return the plain JSON with null in the place of NaN and infinity."""
    if isinstance(plain, float):
        return plain if math.isfinite(plain) else None
    if isinstance(plain, dict):
        return {key: _without_nan(value) for key, value in plain.items()}
    return [_without_nan(value) for value in plain] if isinstance(plain, list) else plain


def _table(rows: Any) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    batches = list(record_batches(rows))
    if not batches:
        raise InputError(
            "There are no rows, so the columns are unknown. Give a table that has columns, even if it is empty."
        )
    return pa.Table.from_batches(batches)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=4_096):
        yield from batch.to_pylist()


def _write_jsonl(table: pa.Table, file: BinaryIO) -> None:
    file.writelines(json_line(row) for row in _rows(table))


def write_csv(table: pa.Table, file: BinaryIO) -> None:
    """Write a table as CSV: nested values in JSON, amounts without exponents, an apostrophe before formulas."""
    for number, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [
                None if v is None else json.dumps(as_json(v), ensure_ascii=False) for v in table[number].to_pylist()
            ]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
        elif pa.types.is_decimal(field.type):
            # Arrow would write exponents: 6.37500E-7 for a small amount, and 0E-12 for zero.
            texts = [None if v is None else f"{v.normalize():f}" for v in table[number].to_pylist()]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
        elif _is_text(field.type):
            table = table.set_column(number, field.name, _without_formulas(table[number]))
    pyarrow.csv.write_csv(table, file)


# Text that spreadsheets read as a formula, which may run programs or send cells away, in wide letters too. A plain
# number is harmless.
_FORMULA = r"^[=+\-@\t\r\n\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]"
_NUMBER = r"^[+-]?[0-9]+([.,][0-9]+)?$"


def count_formulas(table: pa.Table) -> int:
    """Return how many texts of the table get an apostrophe in CSV."""
    columns = [table[field.name] for field in table.schema if _is_text(field.type)]
    return sum(pc.sum(_are_formulas(column.cast(pa.large_string()))).as_py() or 0 for column in columns)


def _are_formulas(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    is_number = pc.match_substring_regex(texts, _NUMBER)
    return pc.and_(pc.match_substring_regex(texts, _FORMULA), pc.invert(is_number))


def _without_formulas(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Put an apostrophe before each text that a spreadsheet would take for a formula."""
    plain = texts.cast(pa.large_string())
    risky = _are_formulas(plain)
    apostrophe, nothing = (pa.scalar(text, pa.large_string()) for text in ("'", ""))
    return pc.if_else(risky, pc.binary_join_element_wise(apostrophe, plain, nothing), plain)


def _write_parquet(table: pa.Table, file: BinaryIO) -> None:
    pyarrow.parquet.write_table(table, file, compression="zstd")


def _write_huggingface(table: pa.Table, folder: Path) -> None:
    try:
        import datasets  # noqa: PLC0415 -- an optional extra
    except ImportError as error:
        raise MissingExtraError("export", "The format 'huggingface'") from error
    # The switch is global to the process: restore the user's setting.
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset(datasets.table.InMemoryTable(table.combine_chunks())).save_to_disk(str(folder))
    finally:
        if not quiet:
            datasets.enable_progress_bars()


_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
"""


def _write_hub(table: pa.Table, folder: Path) -> None:
    data = folder / "data"
    data.mkdir(parents=True)
    with (data / "train-00000-of-00001.parquet").open("wb") as file:
        _write_parquet(table, file)
    (folder / "README.md").write_text(_CARD, encoding="utf-8")


def _write_tfrecord(table: pa.Table, path: Path) -> None:
    kinds = {field.name: _feature_kind(field.type) for field in table.schema}
    with _record_writer(path) as write:
        for row in _rows(table):
            write({name: _feature(value, kinds[name]) for name, value in row.items() if value is not None})


@contextmanager
def _record_writer(path: Path) -> Iterator[Callable[[_Features], None]]:
    """Give a function that writes one record.

    If TensorFlow is installed, its own writer is used: the small library registers the same protobuf names, and a
    process that has imported one of the two can never import the other.
    """
    if find_spec("tensorflow") is not None:
        import tensorflow as tf  # noqa: PLC0415 -- the user's own

        feature: dict[str, Callable[[Sequence[Any]], Any]] = {
            "int": lambda values: tf.train.Feature(int64_list=tf.train.Int64List(value=values)),
            "float": lambda values: tf.train.Feature(float_list=tf.train.FloatList(value=values)),
            "byte": lambda values: tf.train.Feature(bytes_list=tf.train.BytesList(value=values)),
        }
        with tf.io.TFRecordWriter(str(path)) as writer:

            def write(row: _Features) -> None:
                features = tf.train.Features(
                    feature={name: feature[kind](value) for name, (value, kind) in row.items()}
                )
                writer.write(tf.train.Example(features=features).SerializeToString())

            yield write
        return
    try:
        from tfrecord import TFRecordWriter  # noqa: PLC0415 -- an optional extra
    except ImportError as error:
        raise MissingExtraError("export", "The format 'tfrecord'") from error
    with closing(TFRecordWriter(str(path))) as small:
        yield small.write


def _feature_kind(kind: pa.DataType) -> str:
    """Return the type of a column's values, or of its lists' items: "int", "float" or "byte"; "text" by way of JSON."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _feature_kind(kind.value_type)
        return "text" if pa.types.is_nested(kind.value_type) else inner
    if pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and kind != pa.uint64()):
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    if pa.types.is_dictionary(kind):
        return _feature_kind(kind.value_type)
    binaries = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return "byte" if _is_text(kind) or any(check(kind) for check in binaries) else "text"


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _feature(value: Any, kind: str) -> tuple[list[Any], str]:
    if kind == "text":
        plain = as_json(value)
        text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, default=str)
        return [text.encode()], "byte"
    values = value if isinstance(value, list) else [value]
    if None in values:
        # A list of tf.train.Feature has no place for nulls: such a value is JSON.
        return _feature(value, "text")
    if kind == "byte":
        return [value.encode() if isinstance(value, str) else value for value in values], kind
    return [(int if kind == "int" else float)(value) for value in values], kind


STREAMED: dict[str, Callable[[pa.Table, BinaryIO], None]] = {
    "parquet": _write_parquet,
    "csv": write_csv,
    "jsonl": _write_jsonl,
}
"""Formats that one open file takes."""

_FOLDERS: dict[str, Callable[[pa.Table, Path], None]] = {"huggingface": _write_huggingface, "hub": _write_hub}

FORMATS = (*STREAMED, *_FOLDERS, "tfrecord")
"""All formats."""
