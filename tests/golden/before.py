"""What the code of before left: a ledger, a payload store and vendors' batches, in every state that work can be in.

    python -m tests.golden.before --write

made `before.tar.gz` with the code of the commit that it names; run it again only with code whose stores are in use, for
the file stands for them. Each partition is left in the state that it is named after.
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
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from google.oauth2.credentials import Credentials

from tests.golden.corpus import tickets
from tests.golden.filed import Filed, KilledError, answer, recorded
from tests.golden.fixed_workspace import FixedWorkspace
from tests.golden.package import Labeling, Prompt, provider_class

STORE = Path(__file__).with_name("before.tar.gz")
ROWS = 4
STATES = (
    "planned",
    "submitted",
    "ended",
    "collected",  # and settled, but not landed
    "landed",
    "second wave planned",
    "second wave submitted",
    "second wave landed",
    "doubtful, and arrived",
    "doubtful, and lost",
    "superseded",
)
OF_ALL_VENDORS = ("submitted", "landed", "second wave planned")
"""The states that every vendor's work is left in; the first's is left in all."""

_STEP_SECONDS = 3600.0

MODELS = {
    "openai": ("openai/gpt-4o", "chat success", "429"),
    "anthropic": ("anthropic/claude-haiku-4-5", "success", "errored: overloaded_error"),
    "bedrock": ("bedrock/anthropic.claude-haiku-4-5-20251001-v1:0", "claude success", "error 503 is for now"),
    "vertex": ("vertex/gemini-2.5-flash", "vertex success", "vertex status 429"),
    "gemini": ("gemini/gemini-2.5-flash", "gemini success", "gemini error 14"),
}
"""Of each vendor: a model, and which documented lines say that a request was answered, and that it may be later."""


def cases() -> Iterator[tuple[str, str]]:
    """Each vendor and state that there is."""
    for number, vendor in enumerate(MODELS):
        yield from ((vendor, state) for state in (OF_ALL_VENDORS if number else STATES))


def provider(name: str) -> Any:
    """One that is never called by its own means."""
    if name == "bedrock":
        role = "arn:aws:iam::123456789012:role/batch"
        return provider_class(name)("us-east-1", role, "s3://bucket/llm", read_quotas=False, min_requests=1)
    if name == "vertex":
        return provider_class(name)("p", "us-central1", "bucket", credentials=Credentials(token="none"))
    return provider_class(name)("a-key")


def definition(vendor: str) -> Labeling:
    """What was labeled; it must never change."""
    model, *_ = MODELS[vendor]
    output = "max_output_tokens" if vendor in ("vertex", "gemini") else "max_tokens"
    prompt = Prompt(system="You label support tickets.", user="{{ subject }}\n\n{{ body }}")
    return Labeling(
        f"labels_{vendor}", model, key="ticket_id", prompt=prompt, params={output: 40}, keep=["subject", "more"]
    )


def rows(*, changed: bool = False) -> pa.Table:
    """The rows of every partition: two of them ask the same."""
    return tickets(range(ROWS), changed=changed)


def open_workspace(folder: Path, ledger_url: str | None = None, **more: Any) -> FixedWorkspace:
    """The workspace in this folder."""
    workspace = FixedWorkspace(folder, ledger_url, **more)
    for name in MODELS:
        workspace.providers[name] = Filed(provider(name), folder / "vendors" / name, workspace.now)
    return workspace


def answers(vendor: str, custom_ids: list[str], busy: int = 0) -> Iterator[bytes]:
    """Documented lines; the first `busy` requests are to be asked again."""
    good, bad = (next(w for w in recorded(vendor_file(vendor)) if w["name"] == name) for name in MODELS[vendor][1:])
    for number, custom_id in enumerate(custom_ids):
        yield answer(bad if number < busy else good, custom_id)


def vendor_file(vendor: str) -> str:
    return "google" if vendor in ("vertex", "gemini") else vendor


def leave(workspace: FixedWorkspace, vendor: str, state: str) -> None:
    """Bring a partition of this name into this state."""
    labeling, filed, engine = definition(vendor), workspace.providers[vendor], workspace.engine()
    submission_id = engine.plan(labeling, rows(), partition=state, run_id=f"run {state}").submission_id
    submit = partial(engine.submit, labeling, submission_id)
    advance = partial(engine.advance, labeling, submission_id)
    first_answers = partial(answers, vendor, busy=1 if state.startswith("second wave") else 0)
    if state == "planned":
        return
    if state.startswith("doubtful"):
        filed.kill("after" if state.endswith("arrived") else "before")
        with suppress(KilledError):
            submit()
        return
    submit()
    workspace.clock.advance(_STEP_SECONDS)
    if state == "submitted":
        return
    if state == "superseded":
        engine.plan(labeling, rows(changed=True), partition=state, run_id="run changed")
        return
    filed.end(first_answers, [filed.batches()[-1]])
    if state == "ended":
        engine.poll(engine.status(submission_id).shards)
        return
    if state == "second wave planned":
        engine.collect(labeling, submission_id)
        return
    advance()
    if state == "second wave submitted":
        return
    if state == "second wave landed":
        filed.end(partial(answers, vendor), [filed.batches()[-1]])
        workspace.clock.advance(_STEP_SECONDS)
        advance()
    if state.endswith("landed"):
        engine.labels(labeling, submission_id)
        engine.ledger.mark_delivered(submission_id)


def write() -> None:
    """Make the file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = open_workspace(folder)
        for vendor, state in cases():
            leave(workspace, vendor, state)
        workspace.close()
        commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        (folder / "made.json").write_text(json.dumps({"commit": commit, "at": workspace.clock()}))
        with tarfile.open(STORE, "w:gz", compresslevel=9) as files:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    content = path.read_bytes()
                    member = tarfile.TarInfo(str(path.relative_to(folder)))
                    member.size = len(content)
                    files.addfile(member, io.BytesIO(content))
    print(f"{STORE}: {STORE.stat().st_size:,} bytes, by the code of {commit}")


def unpack(folder: Path) -> float:
    """Unpack the file; the time at which it was left."""
    with tarfile.open(STORE) as files:
        files.extractall(folder, filter="data")
    return float(json.loads((folder / "made.json").read_text())["at"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", required=True, help="make before.tar.gz anew")
    parser.parse_args()
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
