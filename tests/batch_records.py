"""Rules that the ledger's tables `shard` and `batch` keep after every transaction."""

from __future__ import annotations

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger import Ledger

__all__ = ["broken_records"]

# Each query finds the rows that break the rule.
_RULES = {
    "a sent shard has a batch that is not void": """
        SELECT shard.shard_id FROM shard LEFT JOIN batch ON batch.batch_key = shard.batch_key
        WHERE shard.state = 'sent' AND (batch.batch_key IS NULL OR batch.state = 'void')
    """,
    "a shard that is not sent has no batch": """
        SELECT shard_id FROM shard WHERE state IN ('planned', 'dropped') AND batch_key IS NOT NULL
    """,
    "the shards of a batch have its provider, account, model and lane": """
        SELECT shard.shard_id FROM shard JOIN batch ON batch.batch_key = shard.batch_key
        WHERE batch.state <> 'void' AND (
            shard.provider <> batch.provider OR shard.account <> batch.account
            OR shard.model <> batch.model OR shard.lane <> batch.lane
        )
    """,
    "a batch has the tag of its first shard, and each place once": """
        SELECT shard.batch_key FROM shard JOIN batch ON batch.batch_key = shard.batch_key GROUP BY shard.batch_key
        HAVING count(DISTINCT shard.place) <> count(*)
            OR max(CASE WHEN shard.place = 0 AND shard.shard_id <> batch.tag THEN 1 ELSE 0 END) = 1
    """,
    "a running batch has an id, and one that is sent none": """
        SELECT batch_key FROM batch
        WHERE (state = 'running' AND batch_id IS NULL) OR (state = 'sending' AND batch_id IS NOT NULL)
    """,
    "a collected shard has a batch that is over, or that nobody waits for": """
        SELECT shard.shard_id FROM shard JOIN batch ON batch.batch_key = shard.batch_key
        WHERE shard.state = 'collected' AND batch.state IN ('sending', 'running')
            AND (shard.cause IS NULL OR shard.cause NOT IN ('given_up', 'gone'))
    """,
    "a batch that is not void has shards": """
        SELECT batch.batch_key FROM batch LEFT JOIN shard ON shard.batch_key = batch.batch_key
        WHERE batch.state <> 'void' AND shard.shard_id IS NULL
    """,
    "the shards of a settled submission are collected": """
        SELECT shard.shard_id FROM shard JOIN submission ON submission.submission_id = shard.submission_id
        WHERE submission.settled_at IS NOT NULL AND shard.state <> 'collected'
    """,
}


def broken_records(ledger: Ledger) -> list[str]:
    """Return each broken rule, with the rows that break it."""
    with ledger._database.read() as connection:
        found = {rule: connection.execute(sa.text(query)).scalars().all() for rule, query in _RULES.items()}
    return [f"{rule}: {', '.join(map(str, rows))}" for rule, rows in found.items() if rows]
