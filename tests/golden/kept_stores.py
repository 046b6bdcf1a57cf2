"""Stores that are kept: a ledger, a payload store and vendors' batches, as a release left them, in every state of work.

    python -m tests.golden.kept_stores --write

makes `stores/<version>.tar.gz` with the current code. Run it once for each release, as the last step before it. Never
rewrite a released store, since users have stores like it. `stores/before.tar.gz` is from before the first release. Each
partition is left in the state that it is named after. A store contains the list of its partitions.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from google.oauth2.credentials import Credentials

from tests.archives import unpack_archive
from tests.golden.corpus import tickets
from tests.golden.filed import Filed, KilledError, answer, recorded
from tests.golden.fixed_workspace import FixedWorkspace
from tests.golden.old_ledgers import mark_delivered
from tests.golden.package import Adopter, Cascade, Judgment, Labeling, Prompt, Rolling, __version__, provider_class

STORES = Path(__file__).with_name("stores")
ROWS, CASCADE_ROWS = 4, 12
OF_BEFORE = (
    "planned",
    "submitted",
    "ended",
    "collected",  # and complete, but not delivered
    "landed",
    "second wave planned",
    "second wave submitted",
    "second wave landed",
    "doubtful, and arrived",
    "doubtful, and lost",
    "superseded",
)
"""The states that every store has, in the order in which they are left."""
OF_0_1_0 = (
    "adopted",  # a script's batch, not yet collected
    "forecast",  # submitted once enough batches had ended for a forecast of its end
    "cascade submitted",
    "cascade, second wave planned",
    "cascade landed",
    "rolling 1 landed",
    "rolling 2 submitted",  # with a threshold from the rows of the first
)
"""The states that 0.1.0 added."""
OF_ALL_VENDORS = ("submitted", "landed", "second wave planned")
"""The states in which every vendor's work is left; the first vendor's is left in all states."""

_ENDED_BEFORE_A_FORECAST = 10
_STEP_SECONDS = 3600.0

MODELS = {
    "openai": ("openai/gpt-4o", "chat success", "429"),
    "anthropic": ("anthropic/claude-haiku-4-5", "success", "errored: overloaded_error"),
    "bedrock": ("bedrock/anthropic.claude-haiku-4-5-20251001-v1:0", "claude success", "error 503 is for now"),
    "vertex": ("vertex/gemini-2.5-flash", "vertex success", "vertex status 429"),
    "gemini": ("gemini/gemini-2.5-flash", "gemini success", "gemini error 14"),
}
"""A model of each vendor, with the documented lines of an answered request and of one that may succeed later."""


SURE_LABEL = {
    "title": "SureLabel",
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["billing", "bug"]}, "confidence": {"type": "number"}},
    "required": ["topic", "confidence"],
    "additionalProperties": False,
}
JUDGMENTS = [
    Judgment(
        form_id=f"form {number}",
        namespace="golden",
        dataset="labels_openai",
        partition="landed",
        row_key=f"t{number:02d}",
        annotator="ada",
        kind="label",
        answer={"topic": "bug", "sure": 0.5, "more": [None, "é"]},
        comment="I am sure.",
        seconds=2.5,
        sample={"sample_weight": 1.5},
        at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    for number in range(2)
]


def cases(states: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return each vendor with the states in which its work is left."""
    first, *others = MODELS
    return [*((first, state) for state in states), *((other, state) for other in others for state in OF_ALL_VENDORS)]


def provider(name: str) -> Any:
    """Return a provider whose own calls are never used."""
    if name == "bedrock":
        role = "arn:aws:iam::123456789012:role/batch"
        return provider_class(name)("us-east-1", role, "s3://bucket/llm", read_quotas=False, min_requests=1)
    if name == "vertex":
        return provider_class(name)("p", "us-central1", "bucket", credentials=Credentials(token="none"))
    return provider_class(name)("a-key")


def definition(vendor: str, state: str = "") -> Labeling:
    """Return the definition of the labels; it must never change."""
    model, *_ = MODELS[vendor]
    output = "max_output_tokens" if vendor in ("vertex", "gemini") else "max_tokens"
    prompt = Prompt(system="You label support tickets.", user="{{ subject }}\n\n{{ body }}")
    usual: dict[str, Any] = {
        "key": "ticket_id",
        "prompt": prompt,
        "params": {output: 40},
        "keep": ["subject", "more"],
    }
    if state.startswith(("cascade", "rolling")):
        is_rolling = state.startswith("rolling")
        calibrate: Any = Rolling(rows=4, audit=0.5) if is_rolling else "partition"
        cascade = Cascade("openai/gpt-4o", "topic", 0.5, 0.9, sample=4, calibrate=calibrate)
        name = "rolling_labels" if is_rolling else "sure_labels"
        return Labeling(name, "openai/gpt-4o-mini", response=SURE_LABEL, cascade=cascade, **usual)
    return Labeling("forecast_labels" if state.startswith("forecast") else f"labels_{vendor}", model, **usual)


def rows(state: str, *, changed: bool = False) -> pa.Table:
    """Return the rows of a partition; two of them share a request."""
    return tickets(range(CASCADE_ROWS if state.startswith(("cascade", "rolling")) else ROWS), changed=changed)


def open_workspace(folder: Path, ledger_url: str | None = None, **more: Any) -> FixedWorkspace:
    """Return the workspace in this folder."""
    workspace = FixedWorkspace(folder, ledger_url, **more)
    for name in MODELS:
        workspace.providers[name] = Filed(provider(name), folder / "vendors" / name, workspace.now)
    return workspace


def end(filed: Filed, vendor: str, busy: int = 0, batch_ids: list[str] | None = None) -> None:
    """End these batches, or all that run, with documented lines. The first `busy` requests must be sent again."""
    good, bad = (next(w for w in recorded(vendor_file(vendor)) if w["name"] == name) for name in MODELS[vendor][1:])

    def replies(batch_id: str, custom_ids: list[str]) -> Iterator[bytes]:
        sent = filed.request_file(batch_id).read_bytes()
        says = partial(_sure, is_oracle=b'"gpt-4o"' in sent) if b'"topic"' in sent else None
        for number, custom_id in enumerate(custom_ids):
            line = answer(bad if number < busy else good, custom_id)
            yield line if says is None else line.replace(b'"Hello."', json.dumps(says(custom_id)).encode())

    for batch_id in filed.batches() if batch_ids is None else batch_ids:
        if not filed.has_ended(batch_id):
            filed.end(partial(replies, batch_id), [batch_id])


def _sure(custom_id: str, *, is_oracle: bool) -> str:
    """Return a model's answer to a cascade's row: for every other request, the cheap model is wrong, and less sure."""
    if is_oracle:
        return json.dumps({"topic": "bug", "confidence": 0.99})
    is_right = int(custom_id[-1], 16) % 2 == 0
    return json.dumps({"topic": "bug" if is_right else "billing", "confidence": 0.9 if is_right else 0.3})


def vendor_file(vendor: str) -> str:
    return "google" if vendor in ("vertex", "gemini") else vendor


def leave(workspace: FixedWorkspace, vendor: str, state: str) -> None:
    """Bring a partition of this name into this state."""
    labeling, filed, engine = definition(vendor, state), workspace.providers[vendor], workspace.engine()
    submission_id = engine.plan(labeling, rows(state), partition=state, run_id=f"run {state}").submission_id
    submit = partial(engine.submit, labeling, submission_id)
    advance = partial(engine.advance, labeling, submission_id)
    if state == "planned":
        return
    if state.startswith("doubtful"):
        filed.kill("after" if state.endswith("arrived") else "before")
        with suppress(KilledError):
            submit()
        return
    already = filed.batches()
    submit()
    workspace.clock.advance(_STEP_SECONDS)
    if state == "forecast" or (state.endswith("submitted") and not state.startswith("second")):
        return
    if state == "superseded":
        engine.plan(labeling, rows(state, changed=True), partition=state, run_id="run changed")
        return
    sent = [batch_id for batch_id in filed.batches() if batch_id not in already]
    end(filed, vendor, busy=1 if state.startswith("second wave") else 0, batch_ids=sent)
    if state == "ended":
        engine.poll(engine.status(submission_id).shards)
        return
    if state.endswith("second wave planned"):
        engine.collect(labeling, submission_id)
        return
    advance()
    if state == "second wave submitted":
        return
    if state.startswith(("second wave", "cascade", "rolling")):
        end(filed, vendor, batch_ids=[batch_id for batch_id in filed.batches() if batch_id not in [*already, *sent]])
        workspace.clock.advance(_STEP_SECONDS)
        advance()
    if state.endswith("landed"):
        engine.labels(labeling, submission_id)
        mark_delivered(engine.ledger, submission_id)


def adopt(workspace: FixedWorkspace, vendor: str, partition: str) -> None:
    """Adopt a script's batch over the same rows: it has the requests of the partition "submitted"."""
    labeling, filed, engine = definition(vendor), workspace.providers[vendor], workspace.engine()
    [theirs] = [
        shard.batch.batch_id
        for one in engine.ledger.submissions.list_all("golden")
        if (one.asset, one.partition) == (labeling.asset, "submitted")
        for shard in engine.ledger.shards.of_submission(one.submission_id)
    ]
    request_file = filed.request_file(theirs)
    with request_file.open("rb") as file:
        batch_id = filed.submit(file, None, "a-script-of-theirs")
    end(filed, vendor, batch_ids=[batch_id])
    adopter = Adopter(labeling, engine.deployment)
    with adopter.look(rows(""), partition=partition, batch_id=batch_id, request_file=request_file) as adoption:
        adopter.store(adoption)


class Kept(NamedTuple):
    """The list in a store: its time, and each vendor with a state of its work."""

    at: float
    cases: list[tuple[str, str]]


def names() -> list[str]:
    """Return the versions of the kept stores, the oldest first."""
    releases = sorted(path.name.removesuffix(".tar.gz") for path in STORES.glob("[0-9]*.tar.gz"))
    return ["before", *sorted(releases, key=lambda name: [int(part) for part in name.split(".")])]


def write() -> None:
    """Make the file of this version."""
    store = STORES / f"{__version__}.tar.gz"
    left = cases(OF_BEFORE + OF_0_1_0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = open_workspace(folder)
        for vendor, state in left:
            if state == "forecast":
                for number in range(_ENDED_BEFORE_A_FORECAST):
                    leave(workspace, vendor, f"forecast {number} landed")
            (adopt if state == "adopted" else leave)(workspace, vendor, state)
        workspace.engine().ledger.judgments.add_all(JUDGMENTS)
        workspace.close()
        commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        (folder / "made.json").write_text(json.dumps({"commit": commit, "at": workspace.clock(), "cases": left}))
        with tarfile.open(store, "w:gz", compresslevel=9) as files:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    content = path.read_bytes()
                    member = tarfile.TarInfo(str(path.relative_to(folder)))
                    member.size = len(content)
                    files.addfile(member, io.BytesIO(content))
    print(f"{store}: {store.stat().st_size:,} bytes, by the code of {commit}")


def unpack(name: str, folder: Path) -> Kept:
    """Unpack a store into a folder."""
    unpack_archive(STORES / f"{name}.tar.gz", folder)
    made = json.loads((folder / "made.json").read_text())
    return Kept(float(made["at"]), [(vendor, state) for vendor, state in made.get("cases", cases(OF_BEFORE))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", required=True, help="make the store of this version anew")
    parser.parse_args()
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
