"""Values that a Mask finds never leave the process: not to the provider, the payload store, the ledger or the log."""

from __future__ import annotations

import json
import logging
import re
import string
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dagster_llm_batch import Limits, Mask, Prompt, Resend
from dagster_llm_batch.core.masks import Found, Masker
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.exports.fine_tuning import fine_tuning
from dagster_llm_batch.exports.tables import write_table
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.telemetry import TracedProvider, measure
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply
from dagster_llm_batch.testing.emulator.answers import last_user_text
from tests.otel import metric_reader, span_exporter, span_provider
from tests.tables import table

LETTERS = string.ascii_lowercase
FILLER = st.text(alphabet=string.ascii_letters + "äßé ,;!?\n\"'<>|", max_size=30)
BOTH = Mask(columns=["text", "note"])
BETWEEN = st.sampled_from([" ", ", ", "\n", " (", ") ", "; ", ' "', "\t", " | "])


def luhn(digits: str) -> str:
    """Return the digits with their check digit."""
    total = sum(sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def iban(country: str, account: str) -> str:
    """Return the IBAN of an account."""
    number = int("".join(str(int(char, 36)) for char in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02d}{account}"


def grouped(value: str, by: str) -> str:
    return by.join(value[at : at + 4] for at in range(0, len(value), 4))


# Amounts of the ledger have as many zeros in a row, so that numbers of zeros would be found there.
DIGITS = st.builds(
    str.__add__, st.sampled_from(["4111", "5500", "3782"]), st.text(alphabet=string.digits, min_size=7, max_size=14)
)
VALUES = {
    "email": st.builds(
        "{}@{}.{}".format,
        st.text(alphabet=LETTERS + string.digits + "._+-", min_size=1, max_size=12),
        st.text(alphabet=LETTERS + string.digits, min_size=1, max_size=12),
        st.sampled_from(["com", "co.uk", "museum"]),
    ),
    "card": st.builds(grouped, DIGITS.map(luhn), st.sampled_from(["", " ", "-", " - ", "\u202f"])),
    "iban": st.builds(
        grouped,
        st.builds(
            iban,
            st.sampled_from(["DE", "GB", "NL", "FR"]),
            st.text(alphabet=string.digits + string.ascii_uppercase, min_size=11, max_size=30),
        ),
        st.sampled_from(["", " ", "\u00a0", "\u202f"]),
    ),
    "phone": st.builds(
        lambda begin, first, rest, by: begin + first + by.join([rest[:2], rest[2:5], rest[5:]]),
        st.sampled_from(["+", "00", "0"]),
        st.sampled_from("123456789"),
        st.text(alphabet="123456789", min_size=7, max_size=14),
        st.sampled_from(["", " ", "-", "/", " / ", " \u2013 ", "\u2011", "\u2009", "\u202f", "\u00a0"]),
    ),
    "ip": st.ip_addresses().map(str).filter(lambda address: len(address) > 6),
}
PLANTED = st.one_of(*(values.map(lambda value, kind=kind: (kind, value)) for kind, values in VALUES.items()))


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Draw a text, and the values planted in it; some values touch other characters."""
    parts, planted = [draw(FILLER)], []
    for _, value in draw(st.lists(PLANTED, min_size=1, max_size=3)):
        touching = draw(st.sampled_from(["", "Tel.", "IP:", "_"])), draw(st.sampled_from(["", "_", "."]))
        parts += [draw(BETWEEN), touching[0], value, touching[1], draw(BETWEEN), draw(FILLER)]
        planted.append(value)
    return "".join(parts), planted


def labeling(mask: Mask | None = BOTH, **changes: Any) -> Labeling:
    usual: dict[str, Any] = {
        "asset": "labels",
        "model": "openai/gpt-4o",
        "key": "id",
        "prompt": Prompt(user="{{ text }} {{ note }}", mask=mask),
        "keep": ["note"],
        "response": None,
        "resend": Resend(fallback=["openai/gpt-4o-mini"]),
    }
    return Labeling(**{**usual, **changes})


@dataclass
class Place:
    """A deployment in a folder, and an emulator that notes each body that it answers, and answers with its text."""

    emulator: Emulator
    bodies: list[str]

    def engine(self, folder: Path) -> Engine:
        provider: Any = TracedProvider(OpenAIProvider(DEFAULT_KEY, self.emulator.openai_base_url), "openai")
        ledger = Ledger(folder / "ledger.db")
        return Engine(Deployment({"openai": provider}, ledger, PayloadStore(folder / "payloads"), "test"))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    bodies: list[str] = []

    def answer(body: dict[str, Any], _endpoint: str) -> Reply:
        bodies.append(json.dumps(body, ensure_ascii=False))
        return Reply(text=last_user_text(body))

    with Emulator(answer=answer) as emulator:
        yield Place(emulator, bodies)


def land(engine: Engine, definition: Labeling, rows: pa.Table, emulator: Emulator) -> pa.Table:
    submission = engine.plan(definition, rows)
    engine.submit(definition, submission.submission_id)
    emulator.settle()
    assert engine.advance(definition, submission.submission_id).is_settled
    return engine.labels(definition, submission.submission_id).labels


def stored_texts(engine: Engine, folder: Path) -> Iterator[str]:
    """Yield the content of all files: streams uncompressed, tables as text, and the ledger's files unchanged."""
    for file in engine.payloads.files(""):
        if file.path.endswith(".parquet"):
            yield str(engine.payloads.read_table(file.path).to_pylist())
            yield str(engine.payloads.table_metadata(file.path))
        else:
            yield b"".join(engine.payloads.lines(file.path)).decode("utf-8", errors="replace")
    for part in folder.glob("ledger.db*"):
        yield part.read_bytes().decode("utf-8", errors="replace")


def exported_text(labels: pa.Table, folder: Path) -> str:
    """Return the content of the folder that `export --format hub` writes."""
    write_table(labels, folder, "hub")
    files = [path for path in folder.rglob("*") if path.is_file()]
    tables = [path for path in files if path.suffix == ".parquet"]
    assert tables
    others = [path.read_text(encoding="utf-8") for path in files if path not in tables]
    return str([pq.read_table(path).to_pylist() for path in tables]) + "".join(others)


def traced_text(engine: Engine, definition: Labeling) -> str:
    """Return all spans and metrics of a labeling, as OpenTelemetry's exporters get them."""
    reader = metric_reader()
    for submission in engine.ledger.submissions.list_all("test"):
        measure(engine, definition, submission.submission_id)
    span_provider().force_flush()
    read = reader.get_metrics_data()
    assert read is not None
    records = [*(span.to_json() for span in span_exporter().get_finished_spans()), read.to_json()]
    exported = json.dumps([json.loads(record) for record in records], ensure_ascii=False)
    assert "submit_batch" in exported
    assert "llm_batch.requests" in exported
    return exported


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=texts(), second=texts())
@example(
    first=("5 4111 1111 1111 1111 7", ["4111 1111 1111 1111"]),
    second=("AB12 DE89370400440532013000", ["DE89370400440532013000"]),
)
def test_no_planted_value_leaves_the_process(
    place: Place, caplog: pytest.LogCaptureFixture, first: tuple[str, list[str]], second: tuple[str, list[str]]
) -> None:
    place.bodies.clear()
    span_exporter().clear()
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    (text, in_text), (note, in_note) = first, second
    rows = pa.table({"id": ["r1"], "text": [text], "note": [note]})
    with tempfile.TemporaryDirectory() as name:
        engine = place.engine(Path(name))
        labels = land(engine, labeling(), rows, place.emulator)
        assert len(place.bodies) == 1
        assert labels.num_rows == 1
        places = {
            "sent": "".join(place.bodies),
            "stored": "".join(stored_texts(engine, Path(name))),
            "logged": caplog.text,
            "labels": str(labels.to_pylist()),
            "exported": exported_text(labels, Path(name) / "hub"),
            "traced": traced_text(engine, labeling()),
        }
        engine.ledger.close()
    # As JSON writes it, too.
    found = [(at, value) for value in [*in_text, *in_note] for at, content in places.items() if value in content]
    assert found == []


MASK = Mask(columns=["text"])


def masked(text: str, mask: Mask = MASK) -> str:
    rows, _ = mask.apply(pa.RecordBatch.from_pylist([{"text": text}]))
    shown: str = rows.column("text")[0].as_py()
    return shown


@table(
    "text, expected",
    [
        ("Write to ann.o'neil+x@exämple.co.uk.", "Write to [EMAIL_1]"),
        ("<ann@example.com>, bob@example.com", "<[EMAIL_1]>, [EMAIL_2]"),
        ("ann@example.com and ann@example.com", "[EMAIL_1] and [EMAIL_1]"),
        ("card 4111 1111 1111 1111 please", "card [CARD_1] please"),
        ("card 4111-1111-1111-1111.", "card [CARD_1]."),
        # A wrong check digit is no card, and a wrong one is no IBAN.
        ("order 4111 1111 1111 1112", "order 4111 1111 1111 1112"),
        ("DE89 3704 0044 0532 0130 00", "[IBAN_1]"),
        ("gb82west12345698765432, ok", "[IBAN_1], ok"),
        ("DE89370400440532013001", "DE89370400440532013001"),
        ("call +49 (0)30 1234567", "call [PHONE_1]"),
        ("030/1234567 or (030) 1234567", "[PHONE_1] or [PHONE_2]"),
        ("at 192.168.0.1:80 and 2001:db8::1: down", "at [IP_1]:80 and [IP_2]: down"),
        ("Ruf 0171 / 1234567 an", "Ruf [PHONE_1] an"),
        ("030 - 1234567; +49 30 \u2013 1234567", "[PHONE_1]; [PHONE_2]"),
        ("+49 30\u202f1234567, +49 30\u20091234567", "[PHONE_1], [PHONE_2]"),
        ("Tel.+49 30 1234567, Mob.0171 1234567", "Tel.[PHONE_1], Mob.[PHONE_2]"),
        ("+49 30 1234567_", "[PHONE_1]_"),
        # Text that touches a number is masked with it.
        ("030 1234567/0172 7654321", "[PHONE_1]"),
        ("00491711234567 2024-01-02", "[PHONE_1]"),
        ("00491711234567 4111 1111 1111 1111", "[PHONE_1]"),
        ("IP:2001:db8:85a3::8a2e:370:7334", "IP:[IP_1]"),
        ('"john doe"@example.com', "[EMAIL_1]"),
        ("IBANDE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "IBAN[IBAN_1]"),
        *[
            (text, text)
            for text in (
                "2024-01-02",
                "01.02.2024",
                "(01.02.2024 12:00)",
                "01.02.2024 - 05.02.2024",
                "2024-01-02 2024-01-03",
                "1.000.000.000",
            )
        ],
        # Times, dates, amounts and versions stay.
        (
            "10:20:30 on 01.12.2026 or 2026-12-01, 1,234.50 EUR, v1.2.3",
            "10:20:30 on 01.12.2026 or 2026-12-01, 1,234.50 EUR, v1.2.3",
        ),
    ],
)
def test_values_become_numbered_placeholders_and_other_text_stays(text, expected):
    assert masked(text).rstrip(".") == expected.rstrip(".")


@table("part", ["A", "0", "1", ".", ":", "+", "(", "-"])
def test_a_megabyte_of_one_character_is_read_to_its_end(part):
    """Search long runs of one character: patterns that start again at each of them would take hours."""
    assert masked(part * 1_000_000 + " ann@example.com").endswith("[EMAIL_1]")


def test_a_text_that_is_not_utf8_is_refused_by_its_column_without_the_text():
    column = pa.array([b"ann \xff"]).cast(pa.binary()).view(pa.string())
    with pytest.raises(InputError, match=r"'text'.*not UTF-8") as refused:
        MASK.apply(pa.RecordBatch.from_arrays([column], ["text"]))
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@table(
    "rows",
    [
        [{"text": 1}, {"text": "ann@example.com"}],
        pd.DataFrame({"text": [1, "ann@example.com"]}),
    ],
    ids=["dicts", "pandas"],
)
def test_rows_that_cannot_be_read_are_refused_without_their_values(rows):
    with pytest.raises(InputError, match=r"'text'.*int, str") as refused:
        list(record_batches(rows, ["text"]))
    assert "ann@example.com" not in "".join(traceback.format_exception(refused.value))


def test_a_value_has_one_placeholder_in_its_row_and_rows_share_none():
    mask = Mask(columns=["subject", "body"], what=["email"])
    rows = pa.RecordBatch.from_pylist(
        [
            {"subject": "a@x.org", "body": "b@x.org, a@x.org"},
            {"subject": None, "body": "b@x.org"},
        ]
    )
    shown, counts = mask.apply(rows)
    assert shown.to_pylist() == [
        {"subject": "[EMAIL_2]", "body": "[EMAIL_1], [EMAIL_2]"},
        {"subject": None, "body": "[EMAIL_1]"},
    ]
    assert counts == {"email": 4}


def test_a_placeholder_that_a_text_has_already_stands_for_no_value_of_its_row():
    mask = Mask(columns=["text", "note"])
    row = {"text": "[EMAIL_1] and [EMAIL_3] wrote to ann@x.org.", "note": "ann@x.org or bob@x.org. [IP_2]"}
    rows, _ = mask.apply(pa.RecordBatch.from_pylist([row]))
    # Columns are numbered in the order of their names.
    [shown] = rows.to_pylist()
    assert shown == {"text": "[EMAIL_1] and [EMAIL_3] wrote to [EMAIL_2].", "note": "[EMAIL_2] or [EMAIL_4]. [IP_2]"}
    assert mask.values_of(row) == {"[EMAIL_2]": "ann@x.org", "[EMAIL_4]": "bob@x.org"}
    assert mask.masked_again("[EMAIL_1], bob@x.org, cleo@x.org", row) == "[EMAIL_1], [EMAIL_4], [EMAIL_5]"
    assert mask.hide(row, lambda _name: False) == shown
    assert mask.apply(rows)[0] == rows


def test_a_judge_reads_placeholders_of_answers_as_the_values_of_their_row():
    mask = Mask(columns=["answer", "text"])
    rows = pa.RecordBatch.from_pylist([{"text": "ann@x.org wrote.", "answer": "Dear [EMAIL_1]"}])
    [shown] = mask.apply(rows, encoded=["answer"])[0].to_pylist()
    assert shown == {"text": "[EMAIL_1] wrote.", "answer": "Dear [EMAIL_1]"}


def test_the_order_in_which_a_mask_names_columns_and_kinds_changes_nothing():
    rows = pa.RecordBatch.from_pylist([{"subject": "a@x.org 10.0.0.1", "body": "b@x.org +49 30 1234567"}])
    one = Mask(columns=["subject", "body"], what=["email", "phone", "ip"])
    other = Mask(columns=["body", "subject", "body"], what=["ip", "phone", "email", "ip"])
    assert one.apply(rows) == other.apply(rows)
    both = [
        labeling(mask=mask, keep=[], prompt=Prompt(user="{{ subject }} {{ body }}", mask=mask)) for mask in (one, other)
    ]
    assert len({each.code_version for each in both}) == 1
    assert both[0].definition == both[1].definition


class Names:
    """A masker of one's own."""

    name = "names-1"

    def __init__(self, *names: str) -> None:
        self.names = names

    def find(self, text: str) -> Iterable[Found]:
        return [Found(text.index(name), text.index(name) + len(name), "person") for name in self.names if name in text]


def test_maskers_of_ones_own_find_more_and_what_overlaps_is_one_value():
    assert isinstance(Names(), Masker)
    mask = Mask(columns=["text"], by=[Names("Ann", "ann@x")])
    assert masked("Ann: ann@x.org", mask) == "[PERSON_1]: [EMAIL_1]"


class Gives:
    """A masker that gives one thing."""

    name = "gives-1"

    def __init__(self, *found: Any) -> None:
        self.found = found

    def find(self, text: str) -> Iterable[Any]:
        return self.found


def test_a_masker_may_give_plain_tuples():
    assert masked("Ann wrote.", Mask(columns=["text"], by=[Gives((0, 3, "person"))])) == "[PERSON_1] wrote."


class Fails(Names):
    """A masker that quotes the text in its error, at its first place or after some."""

    def find(self, text: str) -> Iterable[Found]:
        yield from super().find(text)
        raise ValueError(f"cannot read {text!r}")


@pytest.mark.parametrize(
    ("masker", "named"),
    [
        (Fails(), "names-1 failed with an error of the type ValueError.*test_masks.py"),
        (Fails("Ann"), "names-1 failed with an error of the type ValueError"),
        (Gives((0, 3, "Ann wrote to ann@example.com")), "gives-1 found a value.*a kind of 28 characters"),
    ],
    ids=["at once", "later", "the value as kind"],
)
def test_an_error_of_a_masker_does_not_quote_the_text(place: Place, tmp_path: Path, masker: Masker, named: str) -> None:
    rows = pa.table({"id": ["r1"], "text": ["Ann wrote to ann@example.com"], "note": ["-"]})
    with pytest.raises((ConfigError, InputError), match=named) as refused:
        place.engine(tmp_path).plan(labeling(Mask(columns=["text"], by=[masker])), rows)
    assert "ann@example.com" not in "".join(traceback.format_exception(refused.value))
    assert not any("ann@example.com" in text for text in stored_texts(place.engine(tmp_path), tmp_path))


class Wrong(Names):
    def find(self, text: str) -> Iterable[Found]:
        return [Found(3, 99, "person")]


@table(
    "settings, error, named",
    [
        ({"columns": []}, ConfigError, "columns"),
        ({"columns": "text"}, ConfigError, "columns"),
        ({"columns": ["text"], "what": ["name"]}, ConfigError, "name"),
        ({"columns": ["text"], "what": []}, ConfigError, "nothing"),
        ({"columns": ["absent"]}, InputError, "absent"),
        ({"columns": ["number"]}, InputError, "number"),
        ({"columns": ["text"], "by": [Wrong()]}, ConfigError, "from 3 to 99"),
        ({"columns": ["text"], "by": [Gives((0, 1))]}, ConfigError, "gives-1 gave a tuple"),
        ({"columns": ["text"], "by": [Gives("person")]}, ConfigError, "gives-1 gave a str"),
        ({"columns": ["text"], "by": [Gives((0, "1", "person"))]}, ConfigError, "two whole numbers and a text"),
        ({"columns": ["text"], "by": [Gives((0, 1, 7))]}, ConfigError, "two whole numbers and a text"),
        ({"columns": ["text"], "by": [Gives((0, 1, "values"))]}, ConfigError, "is not 'values'"),
    ],
)
def test_masks_that_cannot_work_are_refused(settings, error, named):
    with pytest.raises(error, match=named):
        Mask(**settings).apply(pa.RecordBatch.from_pylist([{"text": "a@x.org", "number": 1}]))


@table(
    "changes, named",
    [
        ({"key": "note", "keep": []}, "key 'note'"),
        ({"prompt": Prompt(user="{{ text }}", images=["note"], mask=BOTH)}, "note"),
    ],
)
def test_a_dataset_refuses_to_mask_its_key_and_its_images(changes, named):
    with pytest.raises(ConfigError, match=named):
        labeling(**changes)


def test_the_number_of_values_of_each_kind_is_stored_with_the_submission(place: Place, tmp_path: Path) -> None:
    rows = pa.table({"id": ["r1", "r2"], "text": ["a@x.org", "b@x.org 10.0.0.1"], "note": ["a@x.org", None]})
    engine = place.engine(tmp_path)
    submission = engine.plan(labeling(), rows)
    assert engine.masked_values(submission) == {"email": 3, "ip": 1}
    # A second plan recognizes the rows by their masked texts.
    assert engine.plan(labeling(), rows).submission_id == submission.submission_id
    assert engine.masked_values(engine.plan(labeling(mask=None), rows)) is None
    engine.ledger.close()


def test_another_mask_asks_anew_and_an_earlier_one_reads_its_own_answers(place: Place, tmp_path: Path) -> None:
    rows = pa.table({"id": ["r1"], "text": ["Nothing to mask."], "note": ["None."]})
    engine = place.engine(tmp_path)
    land(engine, labeling(), rows, place.emulator)
    other = labeling(mask=Mask(columns=["text"], by=[Names("Ann")]))
    assert other.code_version != labeling().code_version
    assert other.changes_since(labeling().definition) == ["mask"]
    assert labeling().as_of(other.definition).definition == other.definition
    assert labeling(mask=None).as_of(other.definition).definition == other.definition
    before = len(place.emulator.books.batches)
    land(engine, other, rows, place.emulator)
    assert len(place.emulator.books.batches) == before + 1
    engine.ledger.close()


def test_examples_for_fine_tuning_are_masked_as_the_requests_were(place: Place, tmp_path: Path) -> None:
    rows = pa.table({"id": ["r1"], "text": ["Write to a@x.org."], "note": ["10.0.0.1"]})
    engine = place.engine(tmp_path)
    definition = labeling()
    labels = land(engine, definition, rows, place.emulator)
    [one] = fine_tuning(definition, rows, labels)
    assert one.line["messages"][0]["content"] == "Write to [EMAIL_1]. [IP_1]"
    engine.ledger.close()


def test_examples_for_fine_tuning_have_placeholders_where_the_labels_were_given_values(
    place: Place, tmp_path: Path
) -> None:
    bodies = ["From c@x.org to d@x.org.", "From b@x.org to a@x.org."]
    rows = pa.table({"id": ["r0", "r1"], "body": bodies, "note": ["c@x.org", "b@x.org"]})
    engine = place.engine(tmp_path)
    prompt = Prompt(user="{{ body }} {{ note }}", mask=Mask(columns=["body", "note"], restore=["text"]))
    definition = labeling(prompt=prompt, keep=[])
    labels = land(engine, definition, rows, place.emulator)
    # Both rows make the same request, and the label of the second comes first.
    restored = labels.set_column(1, "text", pa.array(["", "a@x.org and b@x.org"])).take([1, 0])
    [one] = fine_tuning(definition, rows, restored)
    assert one.line["messages"][-1]["content"] == "[EMAIL_2] and [EMAIL_1]"
    engine.ledger.close()


class Letter(BaseModel):
    reply: str
    people: list[str]


class Greeted:
    """A masker that finds a name by the word before it."""

    name = "greeted-1"

    def find(self, text: str) -> Iterable[Found]:
        return [Found(*found.span(1), "person") for found in re.finditer(r"\bI am (\w+)", text)]


def test_examples_of_a_json_response_are_valid_json_with_the_placeholders_of_the_row(
    place: Place, tmp_path: Path
) -> None:
    """JSON escapes a line break with a letter, and a masker may depend on the text around a value."""
    body = "I am Ann, ann@x.org, 10.0.0.1, 030 7654321."
    rows = pa.table({"id": ["r1"], "body": [body], "note": [""]})
    engine = place.engine(tmp_path)
    mask = Mask(columns=["body"], restore=["reply", "people"], by=[Greeted()])
    prompt = Prompt(user='{"reply": "{{ body }}", "people": []}', mask=mask)
    definition = labeling(prompt=prompt, keep=[], response=Letter)
    labels = land(engine, definition, rows, place.emulator)
    reply = 'Contact:\n10.0.0.1\tann@x.org\n030 7654321\nAnn, of Annual "10.9.9.9"'
    restored = labels.set_column(labels.column_names.index("reply"), "reply", pa.array([reply]))
    restored = restored.set_column(labels.column_names.index("people"), "people", pa.array([["Ann", "Bo"]]))
    [one] = fine_tuning(definition, rows, restored)
    assert json.loads(one.line["messages"][-1]["content"]) == {
        "reply": 'Contact:\n[IP_1]\t[EMAIL_1]\n[PHONE_1]\n[PERSON_1], of Annual "[IP_2]"',
        "people": ["[PERSON_1]", "Bo"],
    }
    engine.ledger.close()


def test_names_in_mappings_are_masked_again_and_hidden() -> None:
    row = {"body": "ann@x.org"}
    mask = Mask(columns=["body"], restore=["found"])
    assert mask.masked_again({"ann@x.org": [1, "ann@x.org"]}, row) == {"[EMAIL_1]": [1, "[EMAIL_1]"]}
    assert mask.hide({**row, "found": {"ann@x.org": 1}}, lambda _name: False)["found"] == {"[EMAIL_1]": 1}


@table(
    "row, shown",
    [
        # A number would be claimed for values that the request had in another order.
        (
            {"body": "[EMAIL_1] or [EMAIL_2]", "reply": "Dear bob@x.org and cleo@x.org"},
            {"body": "[EMAIL_1] or [EMAIL_2]", "reply": "Dear [EMAIL] and [EMAIL]"},
        ),
        ({"reply": "Dear cleo@x.org"}, {"reply": "Dear [EMAIL]"}),
        (
            {"reply": "Dear cleo@x.org, bob@x.org", "body": "ann@x.org, cleo@x.org"},
            {"reply": "Dear [EMAIL_2], [EMAIL]", "body": "[EMAIL_1], [EMAIL_2]"},
        ),
        ({"by": {"ann@x.org": 1, "bob@x.org": 2}}, {"by": {"[EMAIL]": 1, "[EMAIL]'": 2}}),
        (
            {"reply": '{"a":"At:\\n10.0.0.1","b":"[\\"x\\\\n10.0.0.2\\"]"}'},
            {"reply": '{"a": "At:\\n[IP]", "b": "[\\"x\\\\n[IP]\\"]"}'},
        ),
        ({"reply": '{"a" :1} '}, {"reply": '{"a" :1} '}),
        # Labels beside their rows: the numbers are of the request.
        ({"body": "ann@x.org", "reply": "[EMAIL_1]"}, {"body": "[EMAIL_1]", "reply": "[EMAIL_1]"}),
        ({"body": f"[EMAIL_{'9' * 5_000}]", "reply": ""}, {"body": f"[EMAIL_{'9' * 5_000}]", "reply": ""}),
        ({"reply": '{"a": ann@x.org'}, {"reply": '{"a": [EMAIL]'}),
        ({"reply": "[" * 100_000 + " ann@x.org"}, {"reply": "[" * 100_000 + " [EMAIL]"}),
    ],
)
def test_stored_rows_are_hidden_without_a_number_that_is_not_known(row, shown):
    assert Mask(columns=["body"]).hide(row, lambda _name: False) == shown


def test_without_a_mask_a_definition_does_not_name_one() -> None:
    assert "mask" not in labeling(mask=None, limits=Limits()).definition["asked"]
