"""Faults of real-time calls in the tier "flex" (`Realtime(tier="flex")`), at each vendor that has it.

All twelve rows are urgent, so each is one call. A cell also has the tiers by which its answers are billed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl

from dagster_llm_batch.definition.settings import Realtime
from dagster_llm_batch.testing.emulator import FlexScript, WireFault
from tests.faults.table import ODD_BODIES, STRUCK_ERRORED, Expected, Fault, count_problems
from tests.faults.vendor_workspace import ROWS, STRUCK, Ending, Servers, VendorWorkspace
from tests.faults.vendors import VENDORS, Vendor, vertex_at

_AT = {vendor.name: vendor for vendor in VENDORS}
_GEMINI = "gemini-3.8-flash-tts"
# The price book has no prices of Bedrock's flex, so its answers there have no cost.
FLEX_VENDORS = (
    replace(_AT["openai"], model="gpt-5-nano", params={"max_completion_tokens": 50}),
    replace(_AT["bedrock"], model="openai.gpt-oss-20b-1:0"),
    # The tier is at this location alone.
    replace(_AT["vertex"], model=_GEMINI, provider=partial(vertex_at, "global")),
    replace(_AT["gemini"], model=_GEMINI),
)
_CALLS = {
    "openai": "POST /v1/chat/completions",
    "bedrock": "POST /bedrock/model/*",
    "vertex": "POST /vertex/*:generateContent",
    "gemini": "POST /gemini/*:generateContent",
}
_STANDARD = {"openai": "default", "bedrock": "default", "vertex": "ON_DEMAND", "gemini": "standard"}


class FlexWorkspace(VendorWorkspace):
    """A workspace whose rows are all answered in real time, in the tier "flex"."""

    def __init__(
        self,
        vendor: Vendor,
        servers: Servers,
        folder: Path,
        timeout_seconds: float,
        otherwise: Literal["standard", "batch"],
    ) -> None:
        super().__init__(vendor, servers, folder, timeout_seconds)
        how = Realtime(urgent="now", tier="flex", otherwise=otherwise, concurrency=1)
        self.definition = replace(self.definition, realtime=how, response=None)

    def rows(self) -> pl.DataFrame:
        return super().rows().with_columns(now=pl.lit(value=True))

    def told(self, ending: Ending, submission_id: str) -> Ending:
        """Add the number of answers by their tiers. Each billed answer without a row was billed for nothing."""
        super().told(ending, submission_id)
        ending.twice = sum(one.billed for one in self.emulator.books.executions) - ending.outcomes["succeeded"]
        return ending


@dataclass(frozen=True)
class FlexFault(Fault):
    """One row. `flex` is the behavior of the tier, and `tiers` the number of answers billed by each."""

    flex: Callable[[Vendor], FlexScript] = lambda _: FlexScript()
    otherwise: Literal["standard", "batch"] = "standard"
    tiers: Mapping[str, int] = field(default_factory=lambda: {"tier: flex": ROWS})


def at_calls(**fault: Any) -> Callable[[Vendor], Sequence[WireFault]]:
    """Script a fault of real-time calls."""
    return lambda vendor: [WireFault(route=_CALLS[vendor.name], **fault)]


def _no_faults(_vendor: Vendor) -> Sequence[WireFault]:
    return ()


def _turns_away(calls: int) -> Callable[[Vendor], FlexScript]:
    return lambda _: FlexScript(turned_away=calls)


_SOME_STANDARD = {"tier: flex": ROWS - STRUCK, "realtime": STRUCK}
_ALL_STANDARD = {"realtime": ROWS}
_UNKNOWN = {"unknown": ROWS}

_SOME_FLEX = {"tier: flex": ROWS - STRUCK}
# It is an answer with an error. At Bedrock, whose models answer in forms of their own, it is a reply in none of them.
_SPOILED: Mapping[str, Any] = {
    "expected": STRUCK_ERRORED,
    "but": {"bedrock": Expected({"succeeded": ROWS - STRUCK, "invalid": STRUCK}, reason="none of the known forms")},
    "tiers": _SOME_FLEX,
}


def _odd(name: str) -> Callable[[Vendor], Sequence[WireFault]]:
    media_type, body = ODD_BODIES[name]
    return at_calls(kind="status", status=200, body=body, media_type=media_type, times=STRUCK)


FLEX_FAULTS: tuple[FlexFault, ...] = (
    FlexFault("no fault", _no_faults),
    FlexFault("no capacity for some (429, 503)", _no_faults, flex=_turns_away(STRUCK), tiers=_SOME_STANDARD),
    FlexFault("no capacity for any (429, 503)", _no_faults, flex=_turns_away(ROWS), tiers=_ALL_STANDARD),
    FlexFault(
        "no capacity for some, a batch declared",
        _no_faults,
        flex=_turns_away(STRUCK),
        otherwise="batch",
        tiers={"tier: flex": ROWS - STRUCK, "batch": STRUCK},
    ),
    FlexFault(
        "answers in the standard tier",
        _no_faults,
        flex=lambda vendor: FlexScript(named=_STANDARD[vendor.name]),
        tiers=_ALL_STANDARD,
    ),
    FlexFault("answers name no tier", _no_faults, flex=lambda _: FlexScript(named=None), tiers=_ALL_STANDARD),
    FlexFault("answers name an unknown tier", _no_faults, flex=lambda _: FlexScript(named="turbo"), tiers=_UNKNOWN),
    FlexFault(
        "rows are refused (400)",
        at_calls(kind="status", status=400, times=STRUCK),
        STRUCK_ERRORED,
        tiers=_SOME_FLEX,
    ),
    # The call is repeated in the standard tier, as without capacity.
    FlexFault("a call fails (500)", at_calls(kind="status", status=500), tiers={"tier: flex": ROWS - 1, "realtime": 1}),
    FlexFault("a wrong key, for a while (401)", at_calls(kind="status", status=401, skip=3, times=None), lasts=2),
    FlexFault("connection closed before the effect", at_calls(kind="close", times=STRUCK)),
    FlexFault(
        "connection closed after the effect",
        at_calls(kind="close", when="after", times=STRUCK),
        Expected(twice=STRUCK),
    ),
    *(
        FlexFault(f"200 with {name}", _odd(name), **_SPOILED if name == "a lone surrogate" else {})
        for name in ODD_BODIES
    ),
)


def make_flex_workspace(fault: Fault, vendor: Vendor, servers: Servers, folder: Path) -> VendorWorkspace:
    """Return the workspace of a cell."""
    assert isinstance(fault, FlexFault)
    workspace = FlexWorkspace(vendor, servers, folder, fault.timeout_seconds, fault.otherwise)
    workspace.emulator.flex.script = fault.flex(vendor)
    return workspace


def problems_of_flex(fault: FlexFault, vendor: Vendor, ending: Ending) -> list[str]:
    """List the differences of a cell from its expectation."""
    expected = fault.at(vendor)
    assert isinstance(expected, Expected)
    found = count_problems(expected, ending)
    wanted = dict(fault.tiers)
    if vendor.name == "bedrock" and "tier: flex" in wanted:
        wanted["unknown"] = wanted.pop("tier: flex")
    # Half of the price is a rule where the book has no price of a batch.
    tiers = {name.replace("rule:half", "batch"): count for name, count in ending.tiers.items()}
    if tiers != wanted:
        found.append(f"billed by {tiers} in place of {wanted}")
    return found + [f"never struck: {fault.route}" for fault in ending.unstruck]
