"""Windows of a real broker, in a real `dagster dev` whose daemon is killed while it makes them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest

sys.path.append(str(Path(__file__).parents[2] / "dagster"))  # for its `dagster dev` and its Killer

from dagster_dev import dagster_dev, marked, until
from test_live_kills import Killer

from dagster_llm_batch.streams import KafkaWindow
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

EACH = 17
SETTINGS = """\
run_retries: {enabled: true, max_retries: 5}
run_monitoring: {enabled: true, poll_interval_seconds: 2, start_timeout_seconds: 60}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_message_is_labeled_once_whenever_the_daemon_is_killed(own_broker, tmp_path):
    own_broker.topic("tickets", 2)
    definitions = Path(__file__).with_name("live_defs.py")
    sent = 0

    def produce():
        nonlocal sent
        for partition in (0, 1):
            texts = [{"text": f"Where is invoice {partition}-{n}?"} for n in range(sent, sent + EACH)]
            own_broker.produce("tickets", texts, partition=partition)
        sent += EACH

    def windows():
        return instance.get_dynamic_partitions("kafka_tickets")

    def there(name):
        return instance.get_materialized_partitions(dg.AssetKey(name))

    with Emulator() as emulator:
        env = {
            "OPENAI_BASE_URL": emulator.openai_base_url,
            "OPENAI_API_KEY": DEFAULT_KEY,
            "KAFKA": own_broker.address,
        }
        killed_at = []
        for _ in range(3):
            with dagster_dev(tmp_path, definitions, env, SETTINGS) as dev:
                instance = dg.DagsterInstance.from_config(str(tmp_path / "home"))
                before = len(windows())
                produce()
                dev.until("a new window", lambda known=before: len(windows()) > known)
                Killer(dev, emulator, str(tmp_path)).daemon()  # together with its runs
                killed_at.append((len(windows()), len(there("labels_batch"))))
        with dagster_dev(tmp_path, definitions, env, SETTINGS) as dev:
            log = dev.log

            def all_sent():
                ends = Counter()
                for key in windows():
                    ends.update({one.partition: one.end - one.start for one in KafkaWindow.parse(key).ranges})
                return ends == {0: sent, 1: sent} and there("labels_batch") == set(windows())

            until("all windows to be sent", all_sent, log)
            emulator.settle()
            until("all labels", lambda: there("labels") == set(windows()), log)
        assert any(sent_then < made for made, sent_then in killed_at), "a daemon was killed in the middle of it"
        held = [
            (one.partition, n) for key in windows() for one in KafkaWindow.parse(key).ranges for n in range(*one[1:])
        ]
        assert sorted(held) == [(partition, n) for partition in (0, 1) for n in range(sent)]
        rows = sum(_rows(instance, key) for key in windows())
        assert rows == 2 * sent == len(emulator.books.executions)
        assert set(emulator.books.billed_counts().values()) == {1}
        instance.dispose()
    assert marked(str(tmp_path)) == []


def _rows(instance, key):
    records = dg.AssetRecordsFilter(dg.AssetKey("labels"), asset_partitions=[key])
    [latest] = instance.fetch_materializations(records, limit=1).records
    return latest.asset_materialization.metadata["dagster/partition_row_count"].value
