"""The payload store: on a local disk, in memory, in S3 and in Cloud Storage."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from dagster_llm_batch.errors import ConfigError, PayloadError
from dagster_llm_batch.storage.payloads import PayloadStore, temporary_folder
from dagster_llm_batch.storage.stored_files import DamagedError

SCHEMA = pa.schema([("key", pa.int64()), ("text", pa.string())])
TABLE = pa.table({"key": [1, 2, 3], "text": ["a", None, "ü"]}, SCHEMA)


@pytest.fixture(params=["local", "memory", "s3", "gcs"])
def root(request, tmp_path):
    if request.param == "memory":
        return UPath(f"memory://bucket-{uuid.uuid4().hex}/payloads")
    if request.param == "local":
        return UPath(tmp_path / "made" / "payloads")
    url, options = request.getfixturevalue(request.param)
    return UPath(f"{url}/{uuid.uuid4().hex}", use_listings_cache=False, **options)


@pytest.fixture
def store(root):
    return PayloadStore(root)


def write(store, path, *pieces):
    with store.writer(path) as writer:
        for piece in pieces:
            writer.write(piece)
    return writer


def _blake2b(data):
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def names(root):
    """List every file below the root, without the code under test."""
    return sorted(path.rsplit("/", 1)[-1] for path in root.fs.find(root.path))


@pytest.mark.parametrize("codec", ["zst", "lz4"])
def test_what_is_written_is_read_and_described(store, root, codec):
    data = b'{"a": 1}\n\n' + "x\u2028y\x85z\x0c\r\n".encode() + b"last"
    writer = write(store, f"a/b.{codec}", data[:5], b"", data[5:])
    assert writer.bytes == len(data)
    assert list(store.lines(f"a/b.{codec}")) == [
        b'{"a": 1}\n', b"\n", "x\u2028y\x85z\x0c\r\n".encode(), b"last",
    ]  # fmt: skip
    with store.reader(f"a/b.{codec}") as source:
        assert source.read(3) + source.read() == data
    raw = root.fs.cat_file(f"{root.path}/a/b.{codec}")
    assert pa.CompressedInputStream(pa.BufferReader(raw), "zstd" if codec == "zst" else codec).read() == data
    assert writer.digest == "xxh3:" + xxhash.xxh3_128_hexdigest(raw[:-28])
    assert raw[-16:] == xxhash.xxh3_128_digest(raw[:-28])


def test_an_empty_payload_has_no_lines(store):
    writer = write(store, "empty.zst")
    assert (writer.bytes, list(store.lines("empty.zst"))) == (0, [])


@pytest.mark.parametrize("codec", ["zst", "lz4"])
@pytest.mark.parametrize("of", ["the file as it is stored", "that, as before", "its content, as at first"])
def test_a_payload_of_another_digest_is_an_error_before_it_is_read(store, root, of, codec):
    path, data = f"a.{codec}", b"line\n" * 100_000
    digest = write(store, path, data).digest
    if of == "that, as before":
        digest = f"stored:{_blake2b(root.fs.cat_file(f'{root.path}/{path}'))}"
    elif of == "its content, as at first":
        digest = _blake2b(data)
    with store.checked(path, digest) as again:
        for length in (None, 7, 0, None):
            with again() as source:
                assert source.read(length) == data[:length]
    write(store, path, data[:-5])
    with pytest.raises(OSError, match="is not the one that was written"), store.checked(path, digest):
        pytest.fail("the digest was not compared")


def test_what_was_checked_is_what_is_read_whatever_is_written_meanwhile(store):
    digest = write(store, "a.lz4", b"old\n").digest
    with store.checked("a.lz4", digest) as again:
        write(store, "a.lz4", b"new\n")
        with again() as source:
            assert source.read() == b"old\n"
        store.delete("a.lz4")
        with again() as source:
            assert source.read() == b"old\n"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=20) | st.just(b"\n"), max_size=8))
def test_lines_are_the_bytes_between_newlines(store, pieces):
    writer = write(store, "any.zst", *pieces)
    lines = list(store.lines("any.zst"))
    assert b"".join(lines) == b"".join(pieces)
    assert all(line.endswith(b"\n") for line in lines[:-1])
    assert all(b"\n" not in line[:-1] and line for line in lines)
    assert writer.bytes == sum(map(len, pieces))


def test_a_line_longer_than_every_buffer_stays_one_line(store):
    long = os.urandom(3 << 20).replace(b"\n", b"-")
    write(store, "long.zst", long + b"\n", b"short\n")
    assert list(store.lines("long.zst")) == [long + b"\n", b"short\n"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_while_writing_leaves_nothing(store, root, error):
    with pytest.raises(error), store.writer("a/b.zst") as writer:  # noqa: PT012  # the block is what fails
        writer.write(b"half\n")
        raise error
    with pytest.raises(error), store.table_writer("a/t.parquet", SCHEMA) as table:  # noqa: PT012  # the block is what fails
        table.write_table(TABLE)
        raise error
    assert not store.exists("a/b.zst")
    assert not store.exists("a/t.parquet")
    assert names(root) == []


def test_a_failed_rewrite_keeps_the_old_payload_and_a_good_one_replaces_it(store, root):
    write(store, "a.zst", b"old\n")
    with pytest.raises(KeyError), store.writer("a.zst") as writer:  # noqa: PT012  # the block is what fails
        writer.write(b"new\n")
        raise KeyError
    assert list(store.lines("a.zst")) == [b"old\n"]
    write(store, "a.zst", b"new\n")
    assert list(store.lines("a.zst")) == [b"new\n"]
    assert names(root) == ["a.zst"]


def test_nothing_has_the_final_name_before_it_is_complete(store):
    with store.writer("a.zst") as writer:
        writer.write(os.urandom(1 << 20))
        assert not store.exists("a.zst")
    assert store.exists("a.zst")


@pytest.mark.parametrize("codec", ["zst", "lz4"])
def test_a_truncated_payload_is_an_error_and_never_fewer_lines(store, root, codec):
    full = f"{root.path}/a.{codec}"
    write(store, f"a.{codec}", b"".join(b"line %d\n" % number for number in range(1000)))
    whole = root.fs.cat_file(full)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        root.fs.pipe_file(full, whole[:length])
        with pytest.raises(OSError, match=r"(?i)truncated"):
            list(store.lines(f"a.{codec}"))


def _flipped(whole, bit):
    data = bytearray(whole)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


FILES = {
    "a.zst": lambda store: write(store, "a.zst", *[b"line %d\n" % number for number in range(200)]),
    "a.lz4": lambda store: write(store, "a.lz4", *[b"line %d\n" % number for number in range(200)]),
    "empty.lz4": lambda store: write(store, "empty.lz4"),
    "a.parquet": lambda store: _table(store, None),
    "b.parquet": lambda store: _table(store, ()),
}


def _table(store, repeating):
    with store.table_writer("a.parquet" if repeating is None else "b.parquet", SCHEMA, repeating=repeating) as out:
        out.write_table(TABLE)
        out.add_key_value_metadata({"skipped": "7"})


def _read(store, path):
    if path.endswith(".parquet"):
        return store.table_schema(path), store.read_table(path), list(store.iter_batches(path, columns=["text"]))
    return list(store.lines(path))


@pytest.mark.parametrize("path", FILES)
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, path):
    store = PayloadStore(str(tmp_path))
    FILES[path](store)
    whole = (tmp_path / path).read_bytes()
    good = _read(store, path)
    assert store.is_whole(path)
    errors = 0
    # Flip every bit of the last bytes, which hold the digest and its position, and some bits elsewhere.
    tail = range(max(0, len(whole) - 60) * 8, len(whole) * 8)
    for bit in [*random.Random(5).sample(range(len(whole) * 8), min(300, len(whole) * 8)), *tail]:
        (tmp_path / path).write_bytes(_flipped(whole, bit))
        try:
            assert _read(store, path) == good
        except OSError as error:
            assert not path.endswith(".parquet") or isinstance(error, DamagedError)  # noqa: PT017 - many change nothing
            errors += 1
            assert not store.is_whole(path), bit
        else:
            assert store.is_whole(path), bit
    assert errors > 300
    (tmp_path / path).unlink()
    assert not store.is_whole(path)


def test_a_damaged_file_is_named_with_what_to_do_wherever_it_is_stored(store, root):
    for path, make in FILES.items():
        make(store)
        full = f"{root.path}/{path}"
        whole = root.fs.cat_file(full)
        for bit in (len(whole) * 8 // 3, len(whole) * 8 - 3 if "parquet" not in path else 40):
            root.fs.pipe_file(full, _flipped(whole, bit))
            with pytest.raises(OSError) as raised:  # noqa: PT011 - zstd and lz4 have words of their own
                _read(store, path)
            if isinstance(raised.value, DamagedError):
                assert f"{path} is damaged" in str(raised.value)
            assert not store.is_whole(path)
        root.fs.pipe_file(full, whole)
        assert store.is_whole(path)
        _read(store, path)


def test_files_of_older_versions_carry_no_digest_and_are_read(tmp_path):
    store = PayloadStore(str(tmp_path))
    with pa.CompressedOutputStream(pa.OSFile(str(tmp_path / "old.zst"), "wb"), "zstd") as out:
        out.write(b"line\n" * 1000)
    pq.write_table(TABLE, tmp_path / "old.parquet")
    assert list(store.lines("old.zst")) == [b"line\n"] * 1000
    assert store.read_table("old.parquet").equals(TABLE)
    assert store.is_whole("old.zst")
    assert store.is_whole("old.parquet")
    whole = (tmp_path / "old.zst").read_bytes()
    (tmp_path / "old.zst").write_bytes(whole[:-3])
    assert not store.is_whole("old.zst")


@pytest.mark.parametrize("repeating", [None, (), ("text", "no such column")])
def test_tables_come_back_whole_by_column_and_in_batches(store, root, repeating):
    with store.table_writer("t/t.parquet", SCHEMA, repeating=repeating) as writer:
        writer.write_table(TABLE)
        writer.write_batch(TABLE.to_batches()[0])
    assert store.read_table("t/t.parquet").equals(pa.concat_tables([TABLE, TABLE]))
    assert store.read_table("t/t.parquet", ["text"]).column_names == ["text"]
    batches = list(store.iter_batches("t/t.parquet", 2, ["key"]))
    assert [batch.num_rows for batch in batches] == [2, 2, 2]
    assert pa.Table.from_batches(batches)["key"].to_pylist() == [1, 2, 3, 1, 2, 3]
    raw = root.fs.cat_file(f"{root.path}/t/t.parquet")
    assert pq.ParquetFile(pa.BufferReader(raw)).metadata.row_group(0).column(0).compression == (
        "ZSTD" if repeating is None else "LZ4"
    )


def test_a_batch_of_long_rows_has_fewer_of_them(tmp_path):
    store = PayloadStore(tmp_path)
    table = pa.table({"key": range(6), "text": [f"{number}" * 6_000_000 for number in range(6)]})
    with store.table_writer("t/t.parquet", table.schema, repeating=()) as writer:
        writer.write_table(table)
    assert store.row_bytes("t/t.parquet") > 6_000_000
    batches = list(store.iter_batches("t/t.parquet"))
    assert (len(batches) > 2, pa.Table.from_batches(batches)) == (True, table)
    assert [len(batch) for batch in store.iter_batches("t/t.parquet", columns=["key"])] == [6]


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_what_another_process_wrote_is_seen_although_this_one_has_listed_before(request, kind):
    url, options = request.getfixturevalue(kind)
    here = PayloadStore(f"{url}/{uuid.uuid4().hex}", **options)
    there = PayloadStore(here._root, skip_instance_cache=True)  # a separate file system, like that of another process
    assert here._root.fs is not there._root.fs
    write(there, "a/x.zst", b"1\n")
    assert names(here._root) == ["x.zst"]
    write(there, "a/x.zst", b"2\n" * 10_000)
    write(there, "a/y.zst", b"3\n")
    assert len(list(here.lines("a/x.zst"))) == 10_000
    assert here.exists("a/y.zst")
    there.delete("a/y.zst")
    assert not here.exists("a/y.zst")


_WITHOUT_PACKAGES = """
import sys
sys.modules["s3fs"] = sys.modules["gcsfs"] = None
from dagster_llm_batch.errors import MissingExtraError
from dagster_llm_batch.storage.payloads import PayloadStore
for url in ("s3://bucket/x", "gs://bucket/x"):
    try:
        PayloadStore(url).exists("a.zst")
    except MissingExtraError as error:
        print(error)
"""


def test_an_object_store_whose_package_is_not_installed_says_which_extra_has_it():
    said = subprocess.run([sys.executable, "-c", _WITHOUT_PACKAGES], check=True, capture_output=True, text=True).stdout
    for url, extra, line in zip(("s3://", "gs://"), ("s3", "gcs"), said.splitlines(), strict=True):
        assert line.startswith(f"A payload store at {url}")
        assert f"pip install 'dagster-llm-batch[{extra}]'" in line


def test_delete_removes_and_may_be_repeated(store):
    write(store, "a/b.zst", b"x")
    store.delete("a/b.zst")
    assert not store.exists("a/b.zst")
    store.delete("a/b.zst")
    with pytest.raises(FileNotFoundError):
        list(store.lines("a/b.zst"))
    with pytest.raises(FileNotFoundError):
        store.read_table("a/b.zst")


def test_a_file_that_is_moved_is_what_it_was_under_its_new_name_alone(store, root):
    write(store, "a/old.zst", b"old\n")
    write(store, "a/new.zst", b"new\n")
    store.move("a/new.zst", "a/old.zst")
    assert list(store.lines("a/old.zst")) == [b"new\n"]
    assert names(root) == ["old.zst"]
    # An object store's own error, or a disk's.
    with pytest.raises((OSError, PayloadError)):
        store.move("a/new.zst", "a/old.zst")
    assert list(store.lines("a/old.zst")) == [b"new\n"]


@pytest.mark.parametrize("root_name", [".", "./x", "x", "../x/x"])
def test_files_of_a_store_that_is_named_from_the_current_folder_are_named_from_its_root(
    tmp_path, monkeypatch, root_name
):
    (tmp_path / "x" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x")
    store = PayloadStore(root_name)
    write(store, "x/a.zst", b"x")
    for folder in ("x", ""):
        [file] = store.files(folder)
        assert file.path == "x/a.zst"
    store.remove(file)
    assert not list(store.files("x"))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a//b",
        "a/",
        "./a",
        "a\\..\\x",
        "s3://b/x",
        "C:/x",
        "a\0b",
        "~/x",
        "a/b\n",
    ],
)
def test_a_path_that_could_leave_the_store_is_refused_by_every_method(store, path):
    calls = [
        lambda: write(store, path, b"x"),
        lambda: list(store.lines(path)),
        lambda: store.reader(path).__enter__(),
        lambda: store.checked(path, "").__enter__(),
        lambda: store.table_writer(path, SCHEMA).__enter__(),
        lambda: store.read_table(path),
        lambda: list(store.iter_batches(path)),
        lambda: store.exists(path),
        lambda: store.move("a", path),
        lambda: store.move(path, "a"),
        lambda: store.delete(path),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="payload path"):
            call()


def test_local_files_and_directories_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        store = PayloadStore(tmp_path / "made" / "root")
        write(store, "a/b/c.zst", b"x")
        with store.table_writer("a/t.parquet", SCHEMA) as writer:
            writer.write_table(TABLE)
    finally:
        os.umask(before)
    for path in (tmp_path / "made").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


def test_storage_options_are_not_shown():
    for url in ("memory://x", "s3://bucket/x", "gs://bucket/x"):
        assert "s3cret" not in repr(PayloadStore(url, token="s3cret"))


_STREAM = """
import sys
from tests.processes import peak_bytes
from dagster_llm_batch.storage.payloads import PayloadStore
store = PayloadStore(sys.argv[1])
row = b'{"custom_id": "%d", "text": "' + b"word " * 200 + b'"}\\n'
with store.writer("warm.zst") as writer: writer.write(row)
list(store.lines("warm.zst"))
before = peak_bytes()
with store.writer("big.zst") as writer:
    for number in range(100_000): writer.write(row % number)
assert sum(map(len, store.lines("big.zst"))) == writer.bytes > 100_000_000
print(peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_a_stream_of_100_mb_takes_little_memory(tmp_path):
    command = [sys.executable, "-c", _STREAM, str(tmp_path)]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(grown) < 40 << 20


def test_a_full_disk_says_so_whenever_it_is_noticed_and_keeps_what_was_there(tmp_path):
    store, file = PayloadStore(str(tmp_path)), "f/a.jsonl.zst"
    with store.writer(file) as out:
        out.write(b"old\n")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for size in (0, 1_000, 2_000_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limit[1]))  # a write past this fails, as on a full disk
        try:
            said = rf"^Could not write a\.jsonl\.zst in {tmp_path}/f: File too large\. Files stored"
            with pytest.raises(PayloadError, match=said), store.writer(file) as out:
                out.write(os.urandom(size) + b"\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, heard)
    assert list(store.lines(file)) == [b"old\n"]
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["a.jsonl.zst"]


def test_a_full_temporary_folder_says_so_and_not_that_the_payload_store_is_full(root, tmp_path):
    store, file = PayloadStore(root), "f/a.jsonl.zst"
    written = write(store, file, os.urandom(200_000), b"\n")

    def scatter():
        with temporary_folder() as folder, pa.OSFile(str(folder / "a"), "wb") as out:
            out.write(bytes(200_000))

    def read():
        with store.checked(file, written.digest):
            pass

    spooling = [scatter, read]
    if root.protocol not in ("", "file", "local"):
        spooling.append(lambda: write(store, "f/b.jsonl.zst", os.urandom(200_000)))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for spool in spooling:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        try:
            said = rf"temporary folder {tempfile.gettempdir()} has no room: File too large\..* TMPDIR"
            with pytest.raises(PayloadError, match=said):
                spool()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, heard)
    assert names(root) == ["a.jsonl.zst"]


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(PayloadError, match="Not a directory"), PayloadStore(str(tmp_path)).writer("f/g/a.zst"):
        pass


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep less, and cannot be told")
def test_a_table_that_is_written_leaves_no_memory_held_that_nobody_uses(store):
    with store.table_writer("a.parquet", pa.schema([("a", pa.int64())])) as out:
        out.write_table(pa.table({"a": [1]}))
        blocks = [bytes(2_000) for _ in range(50_000)]  # C's allocator gives back only memory above all blocks in use
        held = blocks[-1]
        blocks.clear()
        before = _resident_bytes()
    assert before - _resident_bytes() > 50_000_000
    assert held


def _resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
