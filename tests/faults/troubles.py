"""Troubles of a submission from files, clocks, processes, backups and people, whatever the vendor answers.

A row of the table strikes at one moment of twelve rows' way. Then the clock moves on by some hours at a time, like
between runs and ticks, until an alert or the submission's end. A person follows the alert, and the submission ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from dagster_llm_batch.errors import LeaseError
from dagster_llm_batch.providers.capabilities import pass_on_capabilities
from dagster_llm_batch.types import RequestSpec
from tests.faults.table import ALL_MISSING, Expected, Never, count_problems, not_there
from tests.faults.vendor_workspace import ROWS, Ending, Servers, VendorWorkspace, rows
from tests.faults.vendors import Vendor

HOUR = 3_600.0
_MOST_STEPS = 40


@dataclass(frozen=True)
class Trouble:
    """One row. `moment` is its time; `person` is the reaction to an alert. `but`: as in `Fault`."""

    name: str
    moment: Literal["planned", "sent", "ended", "settled"]
    strike: Callable[[VendorWorkspace, str], None]
    expected: Expected = field(default_factory=Expected)
    told: bool = False
    person: Callable[[VendorWorkspace, str], None] | None = None
    before: Callable[[VendorWorkspace], None] = lambda _: None
    but: Mapping[str, Expected | Never] = field(default_factory=dict)
    untold: tuple[str, ...] = ()  # vendors at which no alert is expected
    step_hours: int = 1

    def at(self, vendor: Vendor) -> Expected | Never:
        return self.but.get(vendor.name, self.expected)


def _files(workspace: VendorWorkspace, *endings: str) -> Iterator[Path]:
    for ending in endings:
        found = list((workspace.folder / "payloads").rglob(f"*{ending}"))
        assert found, ending
        yield from found


def lose(*endings: str) -> Callable[[VendorWorkspace, str], None]:
    """Delete stored files, like a lifecycle rule of the bucket."""

    def strike(workspace: VendorWorkspace, _: str) -> None:
        for file in _files(workspace, *endings):
            file.unlink()

    return strike


def damage(*endings: str) -> Callable[[VendorWorkspace, str], None]:
    """Flip one bit in the middle of stored files."""

    def strike(workspace: VendorWorkspace, _: str) -> None:
        for file in _files(workspace, *endings):
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)

    return strike


def lose_everywhere(workspace: VendorWorkspace, submission_id: str) -> None:
    """Lose the stored answers, both here and at the vendor."""
    lose(".raw.jsonl.zst", ".results.parquet")(workspace, submission_id)
    workspace.inject(not_there(workspace.vendor))
    if workspace.vendor.name == "command":
        shutil.rmtree(workspace.folder / "jobs")


def hang(workspace: VendorWorkspace) -> None:
    """Let no batch end. An emulator's batch stands still until it is settled."""
    (workspace.folder / "faults").write_text("hangs")


def nothing(_workspace: VendorWorkspace, _submission_id: str) -> None:
    """Do nothing: the strike was before."""


def cancel_at_console(workspace: VendorWorkspace, submission_id: str) -> None:
    [batch_id] = workspace.engine().status(submission_id).batch_ids
    workspace.provider.cancel(batch_id)
    workspace.settle()


def give_up(workspace: VendorWorkspace, submission_id: str) -> None:
    [shard] = workspace.engine().ledger.shards.of_submission(submission_id)
    workspace.engine().give_up(shard.shard_id)


def plan_again(workspace: VendorWorkspace, submission_id: str) -> None:
    """Cancel, and materialize `<name>_batch` once more."""
    workspace.engine().cancel(submission_id)
    materialize(workspace, submission_id)


def materialize(workspace: VendorWorkspace, _: str) -> None:
    """Materialize `<name>_batch`."""
    engine = workspace.engine()
    engine.submit(workspace.definition, engine.plan(workspace.definition, rows()).submission_id)


def set_clock_ahead(workspace: VendorWorkspace, submission_id: str) -> None:
    """Make one step with a clock that is a year ahead."""
    workspace.ahead_seconds = 365 * 24 * HOUR
    workspace.engine().advance(workspace.definition, submission_id)
    workspace.ahead_seconds = 0.0


def send_and_forget(workspace: VendorWorkspace, submission_id: str) -> None:
    """Restore the ledger to its state before the submit call."""
    workspace.back_up()
    workspace.engine().submit(workspace.definition, submission_id)
    workspace.restore()


def forget_all(workspace: VendorWorkspace, submission_id: str) -> None:
    """Restore the ledger to its state before the plan; a schedule then materializes `<name>_batch`."""
    workspace.restore()
    materialize(workspace, submission_id)


class Frozen:
    """A provider in whose SDK this process freezes for longer than its lease, while another process continues."""

    def __init__(self, workspace: VendorWorkspace, submission_id: str) -> None:
        self._workspace = workspace
        self._submission_id = submission_id
        pass_on_capabilities(workspace.provider, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workspace.provider, name)

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        workspace = self._workspace
        for _ in range(4):
            workspace.pass_time(HOUR / 6)
            workspace.engine().advance(workspace.definition, self._submission_id)
        assert len(workspace.engine().status(self._submission_id).batch_ids) == 1
        return workspace.provider.submit(lines, spec, tag)


def freeze(workspace: VendorWorkspace, submission_id: str) -> None:
    try:
        workspace.engine(Frozen(workspace, submission_id)).submit(workspace.definition, submission_id)
    except LeaseError as error:
        workspace.failed = error


TROUBLES = (
    Trouble("a batch never ends", "sent", nothing, ALL_MISSING, told=True, person=give_up, before=hang, step_hours=6),
    Trouble(
        "canceled at the vendor's console",
        "sent",
        cancel_at_console,
        Expected({"canceled": ROWS}, reason="not by this package"),
        told=True,
        before=hang,
        but={"openrouter": Never("nothing stops a batch there")},
    ),
    Trouble("results lost here", "settled", lose(".results.parquet")),
    Trouble("results damaged here", "settled", damage(".results.parquet")),
    Trouble("answers and results lost here", "settled", lose(".raw.jsonl.zst", ".results.parquet")),
    Trouble("answers and results damaged here", "settled", damage(".raw.jsonl.zst", ".results.parquet")),
    Trouble("answers lost here and at the vendor", "settled", lose_everywhere, ALL_MISSING, told=True),
    Trouble("manifest lost", "ended", lose("manifest.parquet"), told=True, person=materialize),
    Trouble("manifest damaged", "ended", damage("manifest.parquet"), told=True, person=materialize),
    Trouble("requests lost before they are sent", "planned", lose(".requests.jsonl.lz4"), told=True, person=plan_again),
    Trouble(
        "requests damaged before they are sent", "planned", damage(".requests.jsonl.lz4"), told=True, person=plan_again
    ),
    Trouble(
        "process frozen in its create call",
        "planned",
        freeze,
        told=True,
        untold=("bedrock", "command"),
        # The stray batch cannot be stopped there.
        but={"openrouter": Expected(twice=ROWS)},
    ),
    Trouble("a clock a year ahead, for one step", "sent", set_clock_ahead),
    Trouble("ledger restored to before the sending", "planned", send_and_forget, told=True),
    Trouble("ledger restored to before the plan", "sent", forget_all, told=True, before=VendorWorkspace.back_up),
)


def run_trouble(trouble: Trouble, vendor: Vendor, servers: Servers, folder: Path, ledger_url: str | None) -> Ending:
    """Run one cell, and return its ending. `told_hours` is the time from the strike to an alert, if any."""
    with closing(VendorWorkspace(vendor, servers, folder, 10.0, ledger_url)) as workspace:
        workspace.inject([])
        trouble.before(workspace)
        engine = workspace.engine()
        submission_id = engine.plan(workspace.definition, rows()).submission_id
        if trouble.moment != "planned":
            engine.submit(workspace.definition, submission_id)
        if trouble.moment in ("ended", "settled"):
            workspace.settle()
        if trouble.moment == "settled":
            assert engine.advance(workspace.definition, submission_id).is_settled
        trouble.strike(workspace, submission_id)
        ending = _go_on(workspace, trouble, submission_id)
        newest = workspace.engine().latest("labels")
        assert newest is not None
        return workspace.told(ending, newest.submission_id)


def _go_on(workspace: VendorWorkspace, trouble: Trouble, submission_id: str) -> Ending:
    ending = Ending()
    struck_at = workspace.now()
    holds = trouble.before is hang
    for ending.steps in range(_MOST_STEPS):
        newest = workspace.engine().latest("labels")
        submission_id = submission_id if newest is None else newest.submission_id
        is_settled, told = workspace.land(submission_id)
        if told is not None and ending.told_hours is None:
            ending.told_hours = (workspace.now() - struck_at) / HOUR
            ending.said = told
            if trouble.person is not None:
                trouble.person(workspace, submission_id)
                is_settled = False
        if is_settled:
            break
        if not holds:
            workspace.settle()
        workspace.pass_time(trouble.step_hours * HOUR)
    return ending


def problems(trouble: Trouble, vendor: Vendor, ending: Ending) -> list[str]:
    """List the differences of a cell from its expectation."""
    expected = trouble.at(vendor)
    assert isinstance(expected, Expected)
    found = count_problems(expected, ending)
    is_told = trouble.told and vendor.name not in trouble.untold
    if (ending.told_hours is not None) != is_told:
        found.append(
            f"told after {ending.told_hours} hours: {ending.said}, where somebody {'' if is_told else 'not '}is to"
        )
    return found
