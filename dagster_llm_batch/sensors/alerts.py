"""A sensor that notifies people of failed checks of this package's assets, and of failed ticks.

Dagster itself reports only failed runs (`make_email_on_run_failure_sensor`); alerts on checks and sensors are a part of
Dagster+. The sensor's cursor has the sent texts, so all failures are reported. Each text is sent once. If `notify`
raises for a text, it is tried again at each tick.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import dagster as dg

from dagster_llm_batch._dagster_private import failed_evaluations, failed_ticks, reason_of_tick
from dagster_llm_batch.arguments import checked
from dagster_llm_batch.assets.translator import ROLE_TAG
from dagster_llm_batch.check_events import NOT_JUDGED
from dagster_llm_batch.sensors.target import SensorTarget
from dagster_llm_batch.text import plain_text

__all__ = ["build_llm_batch_alert_sensor"]

# An event has the time of the machine that wrote it, and may become visible later.
_LATE_SECONDS = 600.0

# One tick may name several submissions, each with its next command. A shorter text would lose the commands.
_MOST_CHARS = 3_000


class _Failure(NamedTuple):
    """A failed check or tick: its unique name, its time in seconds since 1970, and the text to send."""

    name: str
    at: float
    text: str


@checked
def build_llm_batch_alert_sensor(
    notify: Callable[[str], Any],
    name: str = "llm_batch_alert_sensor",
    *,
    sensor_names: tuple[str, ...] | None = None,
    minimum_interval_seconds: int = 60,
    tell_seconds: float = 30.0,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Return a sensor that calls `notify` with a text for each new failed check and failed tick.

    Args:
        notify: Sends a text of one line to people: to Slack, by e-mail. If it raises, the text is tried again at the
            next tick. If it raises for all texts, the tick fails.
        name: Its name.
        sensor_names: Names of the sensors whose failed ticks are reported, in any code location. Default: all sensors
            of this code location that `build_llm_batch_sensor` returned. If it has none: "llm_batch_sensor" in any
            code location.
        minimum_interval_seconds: The least number of seconds between two ticks.
        tell_seconds: The number of seconds in which one tick sends texts; the rest waits for the next tick. Dagster
            ends a tick after 60 seconds, and all its texts would be sent again.
        default_status: The status until the sensor is started or stopped in the UI.
    """

    @dg.sensor(
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Sends alerts about failed checks of LLM batch assets, and about failed ticks of their sensor.",
    )
    def alert_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = time.time()
        # Failures before the first tick are history, perhaps years of it.
        since, told = json.loads(context.cursor) if context.cursor else (now, {})
        failures = [*_failed_checks(context, since), *_failed_ticks(context, since, sensor_names)]
        new = sorted(
            (failure for failure in failures if failure.at > since and failure.name not in told),
            key=lambda failure: failure.at,
        )
        refused: list[tuple[_Failure, Exception]] = []
        began = time.monotonic()
        later: list[_Failure] = []
        for number, failure in enumerate(new):
            if number and time.monotonic() - began > tell_seconds:
                later = new[number:]
                break
            try:
                notify(failure.text)
            except Exception as error:  # noqa: BLE001 - of the user's; a text that is refused must not hold up the others
                refused.append((failure, error))
            else:
                told[failure.name] = failure.at
        # A failed tick keeps no cursor, and all texts would be sent again. So it fails only if it sent no text.
        count = len(new) - len(refused) - len(later)
        if refused and not count:
            raise refused[0][1]
        for failure, reason in refused:
            context.log.error(f"notify raised {type(reason).__name__}: {reason}. It is sent later: {failure.text}")
        # All unsent failures have to be newer than this time.
        untold = [*later, *(failure for failure, _ in refused)]
        oldest = max(since, min([now - _LATE_SECONDS, *(math.nextafter(failure.at, 0) for failure in untold)]))
        told = {known: at for known, at in told.items() if at > oldest}
        context.update_cursor(json.dumps([oldest, told]))
        rest = f"; {len(later)} follow at the next tick" if later else ""
        return dg.SkipReason(f"sent {count}{rest}" if new else "nothing to send")

    return alert_sensor


def _failed_checks(context: dg.SensorEvaluationContext, since: float) -> Iterator[_Failure]:
    """Yield evaluations that failed since then, for checks of this package's assets in this code location."""
    assert context.repository_def is not None
    for key, assets in context.repository_def.assets_defs_by_key.items():
        if ROLE_TAG not in assets.tags_by_key.get(key, {}):
            continue
        for check in (check for check in assets.check_keys if check.asset_key == key):
            for number, at, evaluation in failed_evaluations(context.instance, check, since):
                if NOT_JUDGED not in evaluation.metadata:
                    partition = f" ({evaluation.partition})" if evaluation.partition else ""
                    place = f"{key.to_user_string()}{partition}"
                    text = f"{place}: the check {check.name} failed. {evaluation.description or ''}"
                    yield _Failure(f"check {number}", at, plain_text(text, _MOST_CHARS))


def _polling_sensors(context: dg.SensorEvaluationContext) -> Collection[str]:
    """Return the names of this code location's sensors that poll batches."""
    assert context.repository_def is not None
    sensors = context.repository_def.sensor_defs
    return {one.name for one in sensors if isinstance(one.asset_selection, SensorTarget)}


def _failed_ticks(
    context: dg.SensorEvaluationContext, since: float, sensor_names: Collection[str] | None
) -> Iterator[_Failure]:
    """Yield ticks that failed since then, of the sensors with these names or by default. See the alert sensor."""
    own = _polling_sensors(context) if sensor_names is None else ()
    names = (own or ("llm_batch_sensor",)) if sensor_names is None else sensor_names
    # Another team's sensor may have the same name. A context outside Dagster's processes has no code location.
    here = context.code_location_origin if own else None
    for state in context.instance.all_instigator_state():
        is_here = here is None or state.repository_selector.location_name == here.location_name
        if state.instigator_name not in names or not is_here:
            continue
        for tick in failed_ticks(context.instance, state.instigator_origin_id, state.selector_id, since):
            text = f"{state.instigator_name}: its tick failed. {reason_of_tick(tick)}"
            yield _Failure(f"tick {tick.tick_id}", tick.timestamp, plain_text(text, _MOST_CHARS))
