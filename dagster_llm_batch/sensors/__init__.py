"""The sensor that lands labels of a resource's datasets, and one that tells people what waits for them.

The first polls batches and asks for runs; it never sends anything. A sensor body can run twice, so whatever costs money
happens in runs. A tick is bounded in time: batches wait their turn, least recently polled first, each at a spacing that
grows with its age. State is in the ledger, not in a cursor. The second (`alerts`) keeps what it told in its cursor.
"""

from dagster_llm_batch.sensors.alerts import build_llm_batch_alert_sensor
from dagster_llm_batch.sensors.factory import build_llm_batch_sensor

__all__ = ["build_llm_batch_alert_sensor", "build_llm_batch_sensor"]
