"""The sensor that materializes labels of a resource's datasets, and the alert sensor, which notifies people of waits.

The first sensor polls batches and requests runs; it never sends anything. Dagster may run a sensor body twice, so all
costs arise in runs. A tick is bounded in time: batches wait their turn, least recently polled first, each at a spacing
that grows with its age. State is in the ledger, not in a cursor. The alert sensor (`alerts`) keeps its sent texts in
its cursor.
"""

from dagster_llm_batch.sensors.alerts import build_llm_batch_alert_sensor
from dagster_llm_batch.sensors.factory import build_llm_batch_sensor

__all__ = ["build_llm_batch_alert_sensor", "build_llm_batch_sensor"]
