"""Checks of a platform at each stage of its way. Each failed check yields one sentence."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.platforms.dataset_kinds import ledger_name, name_of
from tests.platforms.evaluations import NAME, partitions_of
from tests.platforms.journey import Journey, Servers, with_causes
from tests.platforms.platform_value import Platform
from tests.platforms.tickets import partition_keys, tickets_of
from tests.platforms.vendors import VENDORS, variable

__all__ = ["problems_of", "refusal_of"]

_MONEY = Decimal("0.00000001")
_FOLDS = 3
_TOO_FEW = "A student needs at least two classes"
_NO_PAIRS = "There is nothing to judge"
_TRACEBACK = "Traceback (most recent call last)"


def problems_of(
    platform: Platform, folder: Path, servers: Servers, setenv: Any, *, only_load: bool = False
) -> list[str]:
    """Take the platform through all stages, and return its problems. A stage with problems is the last one."""
    with Journey.begin(platform, folder, servers, setenv) as journey:
        problems = list(_loading(journey))
        if problems or only_load:
            return problems
        for stage in (_before, _sending, _landing, _rows, _billing, _evaluation, _again):
            problems += [f"{stage.__name__.strip('_')}: {problem}" for problem in stage(journey)]
            if problems and stage in (_sending, _landing):
                break
        return problems


def refusal_of(platform: Platform, folder: Path, servers: Servers, setenv: Any) -> str:
    """Return why a platform does not load, or else the problems that `doctor` finds."""
    with Journey.begin(platform, folder, servers, setenv) as journey:
        if problems := list(_loading(journey)):
            return "\n".join(problems)
        findings = journey.command("doctor").document["findings"]
        return "\n".join(f"{one['check']}: {one['said']}" for one in findings if one["verdict"] == "problem")


def _loading(journey: Journey) -> Iterator[str]:
    try:
        journey.load()
    except Exception as error:  # noqa: BLE001 - any error means that the platform does not load
        yield f"loading: {with_causes(error)[-1500:]}"


def _before(journey: Journey) -> Iterator[str]:
    """Check the forecasts of `doctor` and `plan`."""
    journey.materialize_upstreams()
    yield from _doctor(journey)
    for slot in journey.platform.slots:
        yield from _plan(journey, slot)


def _doctor(journey: Journey) -> Iterator[str]:
    platform = journey.platform
    for slot in dict.fromkeys(platform.slots if journey.on_resource("a") else "a"):
        asked = journey.command("doctor", *journey.on_resource(slot))
        if asked.document is None:
            yield f"doctor ended with {asked.code} and no findings: {asked.output[-600:]}"
            continue
        bad = [one for one in asked.document["findings"] if one["verdict"] == "problem"]
        told = "\n".join(f"{one['check']}: {one['said']} {one['then'] or ''}" for one in bad)
        checks = {one["check"] for one in asked.document["findings"]}
        mine = [one for one in platform.slots if not journey.on_resource(one) or one == slot]
        for other in mine:
            reason = platform.stopped_by(other)
            vendor = VENDORS[platform[f"{other}.vendor"]]
            names = {f"provider {vendor.provider}", f"dataset {ledger_name(platform, other)}"}
            if not names <= checks:
                yield f"doctor has no line for {sorted(names - checks)}"
            if reason is None:
                blamed = [one for one in bad if one["check"] in names]
                yield from (f"doctor has a problem with {other}, which lands: {one}" for one in blamed)
            elif reason.startswith("key=") and f"provider {vendor.provider}" not in told:
                yield f"doctor has no problem with the provider of {other}, which is stopped by {reason}"
        reasons = {platform.stopped_by(other) for other in platform.slots} - {None}
        if bad and not reasons:
            yield f"doctor has problems where nothing is wrong: {told}"


def _plan(journey: Journey, slot: str) -> Iterator[str]:
    platform = journey.platform
    reason = platform.stopped_by(slot)
    asked = journey.plan(slot)
    if _TRACEBACK in asked.output:
        yield f"plan {slot} ends in a traceback: {asked.output[-800:]}"
    if reason is None:
        if asked.code != 0 or asked.document is None:
            yield f"plan {slot} ended with {asked.code}: {asked.output[-600:]}"
            return
        planned = {one["partition"]: one for one in asked.document["plans"]}
        for key in journey.keys(slot):
            rows = len(_tickets(platform, slot, key))
            if planned[key]["rows"] != rows:
                yield f"plan {slot} {key}: {planned[key]['rows']} rows, and there are {rows}"
        return
    if asked.code == 0 and not _has_rows(platform, slot):
        return
    if reason in {"rule=low_limit", "rule=low_budget"}:
        if asked.code == 0 or "refused" not in asked.output.lower():
            yield f"plan {slot} does not refuse what is stopped by {reason}: {asked.code} {asked.output[-300:]}"
    elif asked.code != 0 and not _names_cause(platform, slot, asked.output):
        yield f"plan {slot} is refused without its cause, {reason}: {asked.output[-500:]}"


def _names_cause(platform: Platform, slot: str, text: str) -> bool:
    """Return whether a message names the cause that stops a dataset: its provider, variable, program or limit."""
    reason = platform.stopped_by(slot) or ""
    vendor = platform[f"{slot}.vendor"]
    if reason.startswith("key="):
        words = [f"provider '{VENDORS[vendor].provider}'", variable(vendor), "no-such-program"]
        return any(word in text for word in words)
    return "usd" in text.lower() or "budget" in text.lower()


def _tickets(platform: Platform, slot: str, key: str | None) -> list[dict[str, Any]]:
    own = platform.of_dataset(slot)
    return tickets_of(own["partitions"], key, own["content"], own["id"])


def _has_rows(platform: Platform, slot: str) -> bool:
    return _asks(platform, slot, None)


def _asks(platform: Platform, slot: str, key: str | None, *, without: str = "\0") -> bool:
    """Return whether a partition, or all of a dataset, has rows with a text, and `without` this mark."""
    bodies = [ticket["body"] for ticket in _tickets(platform, slot, key)]
    return any(not body.isspace() and without not in body for body in bodies)


def _sending(journey: Journey) -> Iterator[str]:
    platform = journey.platform
    journey.send()
    for slot in platform.slots:
        why = "\n".join(journey.failures.get(slot, []))
        reason = platform.stopped_by(slot)
        if reason is None and why:
            yield f"the run that sends {slot} failed: {_essence(why)}"
        if reason is not None and _has_rows(platform, slot):
            # Requests in real time are sent by the run that materializes their labels.
            is_sent = not why and platform[f"{slot}.rule"] != "realtime"
            if is_sent:
                yield f"{slot} was sent, though it is stopped by {reason}"
            elif why and not _names_cause(platform, slot, why):
                yield f"{slot} is stopped by {reason}, which the failed run does not name: {_essence(why)}"


def _landing(journey: Journey) -> Iterator[str]:
    platform = journey.platform
    journey.land()
    for slot in platform.landing:
        missing = set(journey.keys(slot)) - journey.materialized(name_of(slot))
        if missing:
            errors = [tick.error for tick in journey.ticks if tick.error is not None]
            why = "\n".join([*journey.failures.get("landing", []), *errors[-1:]]) or "no word of it"
            yield f"{slot} has not landed in {sorted(map(str, missing))}: {_essence(why)}"
    for slot in platform.slots:
        # A partition without rows sends nothing, and is materialized despite anything that would stop it.
        landed = {key for key in journey.materialized(name_of(slot)) if _asks(platform, slot, key)}
        if platform.stopped_by(slot) is not None and landed:
            yield f"{slot} landed in {sorted(map(str, landed))}, though it is stopped by {platform.stopped_by(slot)}"
    expected = any(platform.stopped_by(slot) is not None for slot in platform.slots)
    if not expected:
        yield from (f"a tick failed: {_essence(tick.error)}" for tick in journey.ticks if tick.error is not None)
        yield from (f"a landing run failed: {_essence(why)}" for why in journey.failures.get("landing", []))
    # The first time, one run materializes the labels; each retry of a partition adds one. The oracle of a cascade
    # retries, too.
    asked_by_two = {
        f"{name_of(slot)}{part}"
        for slot in platform.slots
        for part in ("", "_rejects")
        if platform[f"{slot}.rule"] == "cascade" and platform[f"{slot}.content"] == "garbled"
    }
    slots = {f"{name_of(slot)}{part}": slot for slot in platform.slots for part in ("", "_rejects")}
    for (name, key), count in journey.landing_runs.items():
        most = 4 + (name in asked_by_two)
        if name in slots:
            most += _more_sends(journey.platform, slots[name], key)
        if count > most:
            yield f"{count} landing runs of {name} {key}"


def _more_sends(platform: Platform, slot: str, key: str | None) -> int:
    """Return how many more runs a partition needs because its requests do not all fit into the queue at once."""
    rows = len(_tickets(platform, slot, key))
    small = 2 if platform[f"{slot}.rule"] == "small_batches" else rows
    room = {"batches": small, "requests": 5}.get(platform["queue"], rows)
    return max(0, -(-rows // max(1, room)) - 1)


def _rows(journey: Journey) -> Iterator[str]:
    """Check that every row has one outcome."""
    for slot in journey.platform.landing:
        for key in journey.keys(slot):
            tables = {}
            for part in ("", "_rejects"):
                try:
                    tables[part] = journey.load_rows(f"{name_of(slot)}{part}", key)
                except Exception as error:  # noqa: BLE001 - of any IO manager
                    yield f"{name_of(slot)}{part} {key} cannot be loaded: {type(error).__name__}: {str(error)[:300]}"
                    tables[part] = []
            found = Counter(str(row["ticket_id"]) for rows in tables.values() for row in rows)
            wanted = Counter(str(ticket["ticket_id"]) for ticket in _tickets(journey.platform, slot, key))
            if found != wanted:
                yield f"{slot} {key}: rows {sorted(wanted)}, outcomes {sorted(found.elements())}"
            if any(row["llm_outcome"] != "succeeded" for row in tables[""]):
                yield f"{slot} {key}: a label whose outcome is not succeeded"
            yield from _contents(journey.platform, slot, key, tables)


def _contents(platform: Platform, slot: str, key: str | None, tables: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Check that rows are rejected exactly if their content is marked so."""
    rejected = {str(row["ticket_id"]) for row in tables["_rejects"]}
    marks = ("REFUSED", "GARBLED")
    expected = {
        str(ticket["ticket_id"])
        for ticket in _tickets(platform, slot, key)
        if ticket["body"].isspace() or any(mark in ticket["body"] for mark in marks)
    }
    if rejected != expected:
        reasons = {str(row["ticket_id"]): str(row["llm_reason"])[:200] for row in tables["_rejects"]}
        yield f"{slot} {key}: rejected {reasons}, expected {sorted(expected)}"


def _billing(journey: Journey) -> Iterator[str]:
    """Check that each request is billed once, and that the costs of rows add up to those of `cost`."""
    platform = journey.platform
    counts = Counter(one.body_digest for one in journey.emulator.books.executions if one.billed)
    twice = {digest: count for digest, count in counts.items() if count > 1}
    # A reply that does not fit is requested again. The oracle of a cascade or fallback gets another body.
    rows_again = any(platform[f"{slot}.content"] == "garbled" for slot in platform.slots)
    # A request that two partitions share is one body in two submissions.
    shared = any(platform[f"{slot}.content"] == "duplicates" for slot in platform.slots)
    if twice and not rows_again and not shared:
        yield f"{len(twice)} of {len(counts)} requests were billed more than once: {sorted(twice.values())}"
    answers = journey.folder / "answers.jsonl"
    if answers.exists():
        billed = Counter(one["body"] for one in map(json.loads, answers.read_text().splitlines()) if one["billed"])
        if not rows_again and not shared and any(count > 1 for count in billed.values()):
            yield "a command answered a request twice"
    stopped = [slot for slot in platform.slots if platform.stopped_by(slot) is not None]
    for slot in stopped:
        bodies = [one for one in journey.emulator.books.executions if one.account != "sk-emulator"]
        if bodies:
            yield f"{slot} was billed, though it is stopped"
    for slot in platform.landing:
        yield from _costs(journey, slot)


def _costs(journey: Journey, slot: str) -> Iterator[str]:
    rows = []
    for key in journey.keys(slot):
        for part in ("", "_rejects"):
            try:
                rows += journey.load_rows(f"{name_of(slot)}{part}", key)
            except Exception:  # noqa: BLE001 - `_rows` reports it
                return
    name = ledger_name(journey.platform, slot)
    asked = journey.command("cost", "--asset", name, *journey.on_resource(slot))
    if asked.code != 0 or asked.document is None:
        yield f"cost of {slot} ended with {asked.code}: {asked.output[-300:]}"
        return
    whole = asked.document["total"]["cost_usd"]
    known = [Decimal(str(row["llm_cost_usd"])) for row in rows if not _is_null(row["llm_cost_usd"])]
    of_rows = sum(known, Decimal(0))
    total = Decimal(str(whole)) if whole is not None else Decimal(0)
    if abs(of_rows - total) > _MONEY:
        yield f"the rows of {slot} cost {of_rows}, and `cost` says {total}"


def _is_null(value: Any) -> bool:
    return value is None or math.isnan(value)


def _evaluation(journey: Journey) -> Iterator[str]:
    """Evaluation tables exist."""
    word = journey.platform["evaluation"]
    failures = journey.measure()
    if failures and word == "student" and not _can_learn(journey) and _TOO_FEW in failures[None]:
        return
    refused = {key for key in failures if word == "pairwise" and not _can_compare(journey, key)}
    for key, why in failures.items():
        if key not in refused or _NO_PAIRS not in why:
            yield f"{word} failed in {key}: {_essence(why)}"
            return
    if word == "none":
        return
    for name in journey.evaluation_names():
        if name.endswith("_batch"):
            continue
        for key in _keys_of_evaluation(journey):
            if key in refused:
                continue
            try:
                journey.load_rows(name, key)
            except Exception as error:  # noqa: BLE001 - of any IO manager
                yield f"{name} {key} is not there: {type(error).__name__}: {str(error)[:300]}"
    # If every dataset was stopped or has no rows, costs are zero.
    sent = any(_has_rows(journey.platform, slot) for slot in journey.platform.landing)
    is_empty = word == "annotation" or (word == "costs" and not sent)
    if not is_empty and not _columns_of_first(journey) and len(refused) < len(_keys_of_evaluation(journey)):
        yield f"{NAME} has no rows"


def _keys_of_evaluation(journey: Journey) -> list[str | None]:
    return partition_keys(partitions_of(journey.platform), journey.instance)


def _can_compare(journey: Journey, key: str | None) -> bool:
    """Return whether both datasets that a judge compares have labeled a row in this partition of the judge."""
    found = []
    for slot in ("a", "b"):
        own = journey.keys(slot)
        keys = [key] if key in own else own
        found.append({str(row["ticket_id"]) for one in keys for row in journey.load_rows(name_of(slot), one)})
    return bool(found[0] & found[1])


def _can_learn(journey: Journey) -> bool:
    """Return whether a student certainly has enough different texts: four of two classes, since a fifth is held out.

    A text with several labels counts for only one of them, which the student chooses.
    """
    rows = [row for key in journey.keys("a") for row in journey.load_rows(name_of("a"), key)]
    # A cascade's student learns from the oracle's answers only.
    rows = [row for row in rows if row.get("llm_level", "oracle") == "oracle"]
    # It reads words of two or more characters.
    topics: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        topics.setdefault(tuple(re.findall(r"\w\w+", row["body"].lower())), set()).add(row["topic"])
    texts = Counter(topic for found in topics.values() if len(found) == 1 for topic in found)
    return sum(count > _FOLDS for count in texts.values()) > 1


def _columns_of_first(journey: Journey) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for key in _keys_of_evaluation(journey):
        try:
            rows += journey.load_rows(NAME, key)
        except Exception:  # noqa: BLE001 - reported above
            continue
    return rows


def _again(journey: Journey) -> Iterator[str]:
    """Check that materialized labels are not requested or sent again."""
    platform = journey.platform
    before = journey.emulator.books.executions
    # A dataset that is stopped in real time is tried again, up to the limit for lost runs.
    late = [
        slot
        for slot in platform.slots
        if platform.stopped_by(slot) is not None and platform[f"{slot}.rule"] == "realtime"
    ]
    tried = {f"{name_of(slot)}{part}" for slot in late for part in ("", "_rejects")}
    for tick in journey.tick():
        landing = [{key.path[-1] for key in one.asset_selection or ()} for one in tick.requests]
        if asked := [sorted(names) for names in landing if not names <= tried]:
            yield f"the sensor {tick.sensor} asks for runs when all has landed: {asked}"
        if tick.error is not None and not any(platform.stopped_by(slot) for slot in platform.slots):
            yield f"a tick fails when all has landed: {_essence(tick.error)}"
    for slot in late:
        told = [why for why in journey.failures.get("landing", []) if name_of(slot) in why]
        ran = any(name == name_of(slot) for name, _ in journey.landing_runs)
        if ran and not any(_names_cause(platform, slot, why) for why in told):
            yield f"{slot} is stopped by {platform.stopped_by(slot)}, which no run that lands it names: {told[:1]}"
    for slot in platform.landing:
        key = journey.keys(slot)[0]
        if (why := journey.run([f"{name_of(slot)}_batch"], key)) is not None:
            yield f"{slot} cannot be submitted again: {_essence(why)}"
    billed = Counter(one.body_digest for one in before if one.billed)
    for one in journey.emulator.books.executions[len(before) :]:
        if one.billed:
            times = f"billed {billed[one.body_digest]} times before" if one.body_digest in billed else "new"
            yield f"a second submission of the same rows was billed: {one.endpoint} in {one.batch_id}, a body {times}"
    for slot in platform.landing:
        asked = journey.plan(slot)
        plans = [] if asked.document is None else asked.document["plans"]
        # If every request was refused, nothing was billed, and materializing the rows again sends them once more.
        to_send = [one for one in plans if one["requests_to_send"]]
        again = [one["partition"] for one in to_send if _asks(platform, slot, one["partition"], without="REFUSED")]
        if asked.document is None or again:
            yield f"plan {slot} would send again what has landed in {again}: {asked.output[-400:]}"
    yield from _doctor(journey)


def _essence(text: str | None) -> str:
    """Return the lines of a failure without its stack trace."""
    lines = [line for line in (text or "").splitlines() if line.strip() and not line.startswith((" ", "Stack Trace"))]
    return "\n".join(dict.fromkeys(lines))[:1500]
