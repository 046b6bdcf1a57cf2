"""The cases: each makes the text of one golden file.

Journeys go from rows to labels through the official SDKs and the emulator, with retry rounds, fallbacks and labels that
a changed row reuses. Replays give each codec documented result lines, including the lines of the user's own machines
and of all families.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from google.oauth2.credentials import Credentials

from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    Emulator,
    FlexScript,
    Reply,
    RowFault,
    VendorLimits,
    local_gcs,
    local_s3,
    simulated_answer,
)
from tests.golden.corpus import (
    ATTACHED,
    BARE,
    BUSY,
    CUT,
    LETTERS,
    ODD,
    PAPERS,
    PROMPT,
    READ,
    READING,
    REFUSED,
    SECOND,
    SEEING,
    TAUGHT,
    WRONG,
    Quotes,
    labeling,
    parts,
    tickets,
)
from tests.golden.filed import Filed, answer, recorded
from tests.golden.fixed_workspace import START, FixedWorkspace
from tests.golden.old_ledgers import mark_delivered
from tests.golden.package import (
    SERVERS,
    Cascade,
    Embedding,
    Evidence,
    Fallback,
    Gather,
    Gatherer,
    Limits,
    Near,
    Precision,
    RayAnswers,
    Realtime,
    Recall,
    Relabel,
    Resend,
    Reuse,
    RowCondition,
    Spend,
    provider_class,
)

BUCKET = "bucket"
_HAIKU = "anthropic.claude-haiku-4-5-20251001-v1:0"
_LABELER = Path(__file__).parents[1] / "crash" / "labeler.py"
# The price book has OpenAI's prices of flex from 2026-10-12 on.
_PRICED_FLEX = datetime(2026, 10, 15, tzinfo=UTC).timestamp()
_MOST_STEPS = 10
_STEP_SECONDS = 3600.0


class Servers:
    """The servers of files. Each starts when a case first needs it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}

    def url(self, kind: str) -> str | None:
        """Return the URL of the server "s3" or "gcs"."""
        if kind and kind not in self._urls:
            server = {"s3": local_s3, "gcs": local_gcs}[kind](BUCKET)
            self._urls[kind] = self._stack.enter_context(server)
        return self._urls.get(kind)

    def close(self) -> None:
        self._stack.close()


# journeys -------------------------------------------------------------------------------------------------------------


def _openai(emulator: Emulator, _url: str | None, **more: Any) -> Any:
    return provider_class("openai")(DEFAULT_KEY, emulator.openai_base_url, account="the openai account", **more)


def _server(kind: str) -> Callable[[Emulator, str | None], Any]:
    """Return a function that makes the provider of a vendor with OpenAI's lines."""
    server = SERVERS[kind]
    named = {"name": kind, "account": f"the {kind} account", "price_book": server.price_book.value, "server": server}
    return lambda emulator, _url: provider_class("openai")(DEFAULT_KEY, emulator.base_url(kind), **named)


def _anthropic(emulator: Emulator, _url: str | None) -> Any:
    return provider_class("anthropic")(DEFAULT_KEY, emulator.anthropic_base_url, account="the anthropic account")


def _bedrock(emulator: Emulator | None, url: str | None, min_requests: int = 1) -> Any:
    return provider_class("bedrock")(
        "us-east-1",
        "arn:aws:iam::123456789012:role/batch",
        f"s3://{BUCKET}/llm",
        session_options={"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x"},
        endpoint_url=emulator.bedrock_url if emulator else None,
        s3_endpoint_url=url,
        read_quotas=False,
        min_requests=min_requests,
        account="the aws account",
    )


def _vertex(emulator: Emulator | None, url: str | None) -> Any:
    return provider_class("vertex")(
        "p",
        "us-central1",
        BUCKET,
        credentials=Credentials(token=DEFAULT_KEY),
        base_url=emulator.vertex_base_url if emulator else None,
        storage_url=url,
        account="the google project",
    )


def _gemini(emulator: Emulator | None, _url: str | None, **more: Any) -> Any:
    base_url = emulator.gemini_base_url if emulator else None
    return provider_class("gemini")(DEFAULT_KEY, base_url, account="the gemini account", **more)


def _said_alike(body: dict[str, Any], endpoint: str) -> Any:
    """Return the same answer for all rows, so that they may share it, and older labels stay."""
    return simulated_answer({**body, "messages": []}, endpoint)


def _said(body: dict[str, Any], endpoint: str) -> Any:
    """Return the emulated model's answer: as a mark in the row asks, or else one that fits."""
    text = json.dumps(body)
    if ODD in text:
        return {"odd": True}
    if CUT in text:
        return Reply(text='{"topic":"bil', truncated=True)
    if REFUSED in text:
        return Reply(refusal="I would rather not.")
    if WRONG in text:
        return Reply(status_code=400, code="invalid_request", message="The input is too long.")
    return simulated_answer(body, endpoint)


def _said_of_spam(body: dict[str, Any], endpoint: str) -> Any:
    """Return whether a row is spam, by its text. The cheap model errs in a third of the rows, and is unsure there."""
    text = body["messages"][-1]["content"]
    if any(mark in text for mark in (ODD, CUT, REFUSED, WRONG)):
        return _said(body, endpoint)
    number = sum(text.encode())
    errs = number % 3 == 0 and body["model"] == "gpt-4o-mini"
    sure = 0.25 if errs else 0.5 + number % 4 / 8
    answer = json.loads(simulated_answer(body, endpoint).text or "")
    return {**answer, "spam": (number % 2 == 0) is not errs, "sure": sure}


def _said_in_quotes(body: dict[str, Any], endpoint: str) -> Any:
    """Return quotes of a row: its first words, in capitals, in other words, and words that it lacks."""
    text = body["messages"][-1]["content"]
    if any(mark in text for mark in (CUT, REFUSED, WRONG)):
        return _said(body, endpoint)
    words = text.split()[:3]
    said = [" ".join(words), "  ".join(words), f"{' '.join(words)}?!", "nothing of the kind"]
    return {"topic": "bug" if "crash" in text else "billing", "said": said[: len(text) % 5]}


@dataclass(frozen=True)
class Journey:
    """A journey from rows to labels at the emulator. `files` names the server of files that the provider needs.

    `older` has changes of an older definition, which labels the first partition before. `says` is the model. `rows_of`
    makes the rows. `gather` joins the labels of parts, and `when` chooses the labels that a second dataset labels.
    """

    model: str
    provider: Callable[[Emulator, str | None], Any]
    changes: dict[str, Any] = field(default_factory=dict)
    files: str = ""
    key: str = "text"
    rows: int = 8
    changes_rows: bool = False
    says: Callable[[dict[str, Any], str], Any] = _said
    older: dict[str, Any] = field(default_factory=dict)
    papers: tuple[bytes | None, ...] = ()
    rows_of: Callable[..., pa.Table] = tickets
    gather: Gather | None = None
    when: str = ""
    flex: FlexScript = field(default_factory=FlexScript)
    start: float = START

    def __call__(self, folder: Path, servers: Servers) -> str:
        workspace = FixedWorkspace(folder, start=self.start)
        definition = labeling(self.model, **self.changes)
        older = labeling(self.model, **{**self.changes, **self.older}) if self.older else None
        url = servers.url(self.files)
        with Emulator(
            answer=self.says,
            clock=workspace.clock,
            limits=VendorLimits(bedrock_min_records=1),
            faults=[RowFault(containing=BUSY, status_code=503, times=1)],
            **({f"{self.files}_url": url} if url else {}),
        ) as emulator:
            emulator.flex.script = self.flex
            workspace.providers = {definition.provider: self.provider(emulator, url)}
            rows = partial(self.rows_of, key=self.key, papers=self.papers)
            options = {"changes_rows": self.changes_rows, "older": older, "gather": self.gather, "when": self.when}
            return _travel(workspace, definition, rows, self.rows, emulator.settle, **options)


def _travel(
    workspace: FixedWorkspace,
    definition: Any,
    rows: Callable[..., pa.Table],
    count: int,
    settle: Callable[[], None],
    *,
    changes_rows: bool,
    older: Any = None,
    gather: Any = None,
    when: str = "",
) -> str:
    """Label two partitions at once. With `changes_rows`, then label one with a changed row, and again unchanged.

    The older definition, if any, labels one before. With `gather`, join the labels of parts. With `when`, then label
    the first partition's labels that meet this condition by a second dataset.
    """
    tables: dict[str, pa.Table] = {}

    def land(partition: str, name: str, submission_id: str, asked: Any = definition) -> None:
        for _ in range(_MOST_STEPS):
            settle()
            workspace.clock.advance(_STEP_SECONDS)
            if workspace.engine().advance(asked, submission_id).is_settled:
                break
        labeled = workspace.engine().labels(asked, submission_id, run_id=f"run of {name}")
        if name != "again":
            tables[f"labels {partition} {name}"], tables[f"rejects {partition} {name}"] = (
                labeled.labels,
                labeled.rejects,
            )
        if gather is not None:
            gatherer = Gatherer(gather, "ticket_id", ["subject"], asked.reader.schema, asked.quoted_columns)
            gathered = gatherer.gather(tables[f"labels {partition} {name}"], tables[f"rejects {partition} {name}"])
            tables.update(zip((f"gathered {partition} {name}", f"left {partition} {name}"), gathered, strict=True))
        mark_delivered(workspace.engine().ledger, submission_id)

    partitions = {"2026-01-01": rows(range(count)), "day 2/é": rows(range(count - 2, count + 2))}
    engine = workspace.engine()
    if older is not None:
        before = engine.plan(older, partitions["2026-01-01"], partition="2026-01-01")
        engine.submit(older, before.submission_id)
        land("2026-01-01", "before", before.submission_id, older)
        engine = workspace.engine()
    ids = [engine.plan(definition, table, partition=one).submission_id for one, table in partitions.items()]
    engine.submit_together(definition, ids)
    for partition, submission_id in zip(partitions, ids, strict=True):
        land(partition, "first", submission_id)
    if when:
        labels = tables["labels 2026-01-01 first"]
        batches = labels.select(["ticket_id", *definition.keep]).to_batches()
        chosen = [RowCondition(when).compute(batch) for batch in labels.to_batches()]
        second = replace(definition, asset="second_labels", prompt=SECOND)
        kept = pa.Table.from_batches([batch.filter(one) for batch, one in zip(batches, chosen, strict=True)])
        planned = workspace.engine().plan(second, kept, partition="2026-01-01").submission_id
        workspace.engine().submit(second, planned)
        land("2026-01-01", "second", planned, second)
    engine = workspace.engine()
    later = {"changed": rows(range(count), changed=True), "again": rows(range(count))} if changes_rows else {}
    for name, table in later.items():
        submission = engine.plan(definition, table, partition="2026-01-01", run_id=name)
        engine.submit(definition, submission.submission_id)
        land("2026-01-01", name, submission.submission_id)
    text = workspace.text(tables, {"code": definition.code_version, "prompt": definition.prompt_version})
    workspace.close()
    return text


def command(folder: Path, _servers: Servers) -> str:
    """Run a command on this machine. Its process reads the real clock, so its time of the end is set back."""
    workspace = FixedWorkspace(folder)
    answers = folder / "answers.jsonl"
    words = [sys.executable, "-S", str(_LABELER), "{input}", "{output}", str(answers), BUSY]
    workspace.providers = {"command": provider_class("command")(words, str(folder / "jobs"), account="the labeler")}
    definition = labeling(
        "command/m",
        response={
            "title": "Given",
            "type": "object",
            "properties": {"topic": {"type": "string"}, "urgency": {"type": "integer"}},
            "required": ["topic"],
        },
    )

    def settle() -> None:
        for job in (folder / "jobs").iterdir():
            while not (job / "exit.json").exists():
                time.sleep(0.005)
            said = json.loads((job / "exit.json").read_text(encoding="utf-8"))
            (job / "exit.json").write_text(json.dumps({**said, "ended_at": workspace.clock()}), encoding="utf-8")

    return _travel(workspace, definition, partial(tickets, key="integer"), 8, settle, changes_rows=True)


_CHAT = {
    "prompt": SEEING,
    "limits": Limits(max_requests_per_batch=5),
    "realtime": Realtime(urgent="now", concurrency=1),
    "resend": Resend(fallback=[Fallback("openai/gpt-4o-mini", params={"max_tokens": 60, "temperature": 0.5})]),
    "max_cost_usd": "5",
}
_OUTPUT = {"max_output_tokens": 80}
_NEAR = {"prompt": BARE, "resend": Resend(reuse=Reuse(near=Near("body", "topic", 0.7, 0.5, 0.9, sample=4)))}

_QUOTED = {"prompt": BARE, "response": Quotes, "evidence": Evidence({"said": "body"})}


def _filter(guarantee: Precision | Recall) -> dict[str, Any]:
    settings = {"target": "spam", "score": "sure", "confidence": 0.8, "sample": 24, "guarantee": guarantee}
    return {"prompt": BARE, "cascade": Cascade("openai/gpt-4o", **settings)}


JOURNEYS = {
    "openai-chat": Journey("openai/gpt-4o", _openai, _CHAT, changes_rows=True),
    "openai-responses": Journey(
        "openai/gpt-4o", _openai, {"endpoint": "responses", "params": _OUTPUT, "prompt": TAUGHT}, key="integer"
    ),
    "openai-relabel": Journey(
        "openai/gpt-4o",
        _openai,
        {"resend": Resend(reuse=Reuse(relabel=Relabel("topic", share=0.5, confidence=0.9, sample=4)))},
        says=_said_alike,
        older={"prompt": BARE},
    ),
    "openai-relabel-cascade": Journey(
        "openai/gpt-4o-mini",
        _openai,
        {
            "prompt": BARE,
            "cascade": Cascade("openai/gpt-4o", "topic", agreement=0.8, confidence=0.8, score="sure", sample=12),
            "resend": Resend(reuse=Reuse(relabel=Relabel("topic", share=0.3, confidence=0.8, sample=8))),
        },
        rows=40,
        changes_rows=True,
        says=_said_alike,
        older={"prompt": PROMPT},
    ),
    "openai-near": Journey("openai/gpt-4o", _openai, _NEAR, rows=26, changes_rows=True, says=_said_alike),
    # Copies differ, so the audit fails, and a later round asks them.
    "openai-near-apart": Journey("openai/gpt-4o", _openai, _NEAR, rows=26),
    "openai-filter": Journey("openai/gpt-4o-mini", _openai, _filter(Precision(0.75)), rows=40, says=_said_of_spam),
    "openai-filter-recall": Journey("openai/gpt-4o-mini", _openai, _filter(Recall(0.75)), rows=40, says=_said_of_spam),
    "openai-embeddings": Journey(
        "openai/text-embedding-3-small",
        _openai,
        {"response": Embedding(4), "params": {}, "prompt": BARE, "keep": []},
        key="date",
        rows=7,
    ),
    "mistral": Journey("mistral/ministral-8b-2512", _server("mistral"), {"prompt": TAUGHT}),
    "anthropic": Journey(
        "anthropic/claude-haiku-4-5",
        _anthropic,
        {"prompt": TAUGHT, "resend": Resend(2, 1)},
        key="large text",
    ),
    "anthropic-uploads": Journey(
        "anthropic/claude-haiku-4-5", _anthropic, {"prompt": READING}, changes_rows=True, papers=PAPERS
    ),
    "openai-documents": Journey(
        "openai/gpt-4o",
        _openai,
        {"endpoint": "responses", "params": _OUTPUT, "prompt": ATTACHED},
        papers=LETTERS,
    ),
    "bedrock-documents": Journey(
        f"bedrock/{_HAIKU}",
        partial(_bedrock, min_requests=6),
        {"prompt": ATTACHED, "limits": Limits(below_minimum="pad")},
        "s3",
        papers=LETTERS,
    ),
    "vertex-documents": Journey(
        "vertex/gemini-2.5-flash", _vertex, {"params": _OUTPUT, "prompt": ATTACHED}, "gcs", papers=LETTERS
    ),
    "openai-document-texts": Journey("openai/gpt-4o", _openai, {"prompt": READ}, papers=LETTERS, changes_rows=True),
    "openai-quotes": Journey("openai/gpt-4o", _openai, {**_QUOTED, "keep": ["body"]}, says=_said_in_quotes),
    "openai-parts": Journey(
        "openai/gpt-4o",
        _openai,
        {**_QUOTED, "key": "part_key", "keep": ["ticket_id", "subject", "body", "part", "parts", "part_start"]},
        says=_said_in_quotes,
        rows_of=parts,
        gather=Gather("concat", {"topic": "vote"}),
    ),
    "openai-chain": Journey("openai/gpt-4o", _openai, when="topic != 'bug' and urgency > 2 or tags is not None"),
    # The deadline passes while the batch runs. Flex turns the first of its unanswered requests away.
    "openai-flex": Journey(
        "openai/gpt-5-nano",
        _openai,
        {
            "params": {"max_completion_tokens": 80},
            "realtime": Realtime(deadline=timedelta(hours=1), concurrency=1, tier="flex"),
        },
        flex=FlexScript(turned_away=1),
        start=_PRICED_FLEX,
    ),
    "bedrock-claude": Journey(
        f"bedrock/{_HAIKU}",
        partial(_bedrock, min_requests=6),
        {"prompt": SEEING, "limits": Limits(max_requests_per_batch=8, below_minimum="pad")},
        "s3",
        key="small integer",
    ),
    "bedrock-nova": Journey(
        "bedrock/amazon.nova-lite-v1:0",
        partial(_bedrock, min_requests=6),
        {"response": None, "limits": Limits(below_minimum="realtime")},
        "s3",
    ),
    "vertex-gemini": Journey(
        "vertex/gemini-2.5-flash", _vertex, {"prompt": TAUGHT, "params": _OUTPUT}, "gcs", key="local time"
    ),
    "vertex-claude": Journey("vertex/claude-haiku-4-5", _vertex, {"prompt": TAUGHT}, "gcs", key="instant", rows=5),
    "gemini-inline": Journey(
        "gemini/gemini-2.5-flash", partial(_gemini, inline_bytes=1 << 20), {"params": _OUTPUT, "prompt": SEEING}
    ),
    "gemini-file": Journey(
        "gemini/gemini-2.5-flash",
        partial(_gemini, inline_bytes=0),
        {"params": _OUTPUT, "prompt": SEEING, "limits": Limits(max_requests_per_batch=6)},
        key="time of day",
    ),
}


# replays --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """Documented result lines through the engine: each answers one request, and some answer no request."""

    model: str
    provider: Callable[[Path], Any]
    wire: str
    of: Callable[[dict[str, Any]], bool]
    changes: dict[str, Any] = field(default_factory=dict)
    key: str = "text"

    def __call__(self, folder: Path, _servers: Servers) -> str:
        workspace = FixedWorkspace(folder)
        vendor = Filed(self.provider(folder), folder / "vendor", workspace.now)
        definition = labeling(
            self.model,
            **{
                "response": None,
                "resend": Resend(1, 1),
                "spend": Spend(expected_output_tokens=20),
                "keep": [],
                **self.changes,
            },
        )
        workspace.providers = {definition.provider: vendor}
        lines = [wire for wire in recorded(self.wire) if self.of(wire)]
        rows = _distinct(definition, len(lines) + 1, self.key)
        submission_id = workspace.engine().plan(definition, rows).submission_id
        workspace.engine().submit(definition, submission_id)
        workspace.clock.advance(_STEP_SECONDS)
        vendor.end(partial(_replies, lines))
        assert workspace.engine().advance(definition, submission_id).is_settled
        labeled = workspace.engine().labels(definition, submission_id, run_id="run")
        tables = {"labels": labeled.labels, "rejects": labeled.rejects}
        text = workspace.text(tables, {"code": definition.code_version, "prompt": definition.prompt_version})
        workspace.close()
        return text


def _distinct(definition: Any, count: int, key: str) -> pa.Table:
    """Return rows with this many different requests: two rows share one."""
    del definition
    return tickets(range(count + 1), key)


def _replies(lines: list[dict[str, Any]], custom_ids: list[str]) -> Iterator[bytes]:
    """Yield answers: none for the last request, two for the first, and one with a foreign custom_id."""
    for wire, custom_id in zip(lines, custom_ids, strict=False):
        yield answer(wire, custom_id)
    yield answer(lines[0], custom_ids[0])
    yield answer(lines[0], f"r{'0' * 16}-{'0' * 40}")


def _named(*starts: str) -> Callable[[dict[str, Any]], bool]:
    return lambda wire: wire["name"].startswith(starts)


def _at(endpoint: str) -> Callable[[dict[str, Any]], bool]:
    return lambda wire: wire["endpoint"] == endpoint


def _few(wire: dict[str, Any]) -> bool:
    return wire in recorded("openai")[:6]


def _offline(name: str) -> Callable[[Path], Any]:
    return lambda _folder: provider_class(name)("a-key", account=f"the {name} account")


def _own(name: str, *arguments: Any) -> Callable[[Path], Any]:
    return lambda folder: provider_class(name)(*arguments[:1], str(folder / "work"), *arguments[1:], account="own")


def _on_ray(_folder: Path) -> Any:
    return provider_class("ray")("http://127.0.0.1:8265", "/tmp/none", RayAnswers(call="labeler:label"), account="own")


_VECTOR = {"response": Embedding(), "params": {}}

REPLAYS = {
    "openai-chat": Replay("openai/gpt-4o", _offline("openai"), "openai", _at("chat"), {"prompt": TAUGHT}),
    "openai-responses": Replay(
        "openai/gpt-4o",
        _offline("openai"),
        "openai",
        _at("responses"),
        {"endpoint": "responses", "params": _OUTPUT, "prompt": SEEING},
        "integer",
    ),
    "openai-embeddings": Replay(
        "openai/text-embedding-3-small", _offline("openai"), "openai", _at("embeddings"), _VECTOR | {"prompt": BARE}
    ),
    "anthropic": Replay(
        "anthropic/claude-haiku-4-5", _offline("anthropic"), "anthropic", lambda _: True, {"prompt": SEEING}, "date"
    ),
    **{
        f"bedrock-{family}": Replay(
            f"bedrock/{model}", lambda _folder: _bedrock(None, None), "bedrock", _named(*starts), changes, key
        )
        for family, model, starts, changes, key in (
            ("claude", _HAIKU, ("claude", "error", "neither", "output", "unknown", "BOM", "blank"), {}, "text"),
            ("nova", "us.amazon.nova-lite-v1:0", ("nova",), {"prompt": TAUGHT}, "instant"),
            ("llama", "meta.llama3-1-8b-instruct-v1:0", ("llama",), {}, "local time"),
            ("chat", "openai.gpt-oss-20b-1:0", ("gpt-oss", "chat", "mistral"), {}, "large text"),
            ("converse", "cohere.command-r-v1:0", ("converse",), {}, "time of day"),
            ("titan", "amazon.titan-embed-text-v2:0", ("titan",), _VECTOR | {"prompt": BARE}, "small integer"),
        )
    },
    "vertex-gemini": Replay(
        "vertex/gemini-2.5-flash",
        lambda _folder: _vertex(None, None),
        "google",
        _named("vertex"),
        {"params": _OUTPUT, "prompt": SEEING},
    ),
    "vertex-claude": Replay(
        "vertex/claude-haiku-4-5", lambda _folder: _vertex(None, None), "google", _named("claude"), {"prompt": PROMPT}
    ),
    "gemini": Replay(
        "gemini/gemini-2.5-flash",
        lambda _folder: _gemini(None, None),
        "google",
        _named("gemini", "blank"),
        {"params": _OUTPUT, "prompt": TAUGHT},
        "instant",
    ),
    "command": Replay("command/m", _own("command", ["cat", "{input}", "{output}"]), "openai", _few),
    "slurm": Replay("slurm/m", _own("slurm", ["cat", "{input}", "{output}"]), "openai", _few, {"prompt": TAUGHT}),
    "ray": Replay("ray/m", _on_ray, "openai", _few, {"prompt": SEEING}),
}

CASES: dict[str, Callable[[Path, Servers], str]] = {
    **{f"journey-{name}": case for name, case in JOURNEYS.items()},
    "journey-command": command,
    **{f"replay-{name}": case for name, case in REPLAYS.items()},
}
"""Golden files by name, each with the case that makes it."""
