"""Kafka as a Dagster resource, with its address. Credentials stay in it: give them as `dg.EnvVar("…")`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dagster_llm_batch.config import CheckedResource
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.streams.client import Connection

__all__ = ["KafkaResource", "kafka_of"]


class KafkaResource(CheckedResource):
    """A Kafka cluster, or a server with its protocol. Connections open on first use."""

    bootstrap_servers: str = Field(description="Addresses of one or more brokers, as in 'kafka-1:9092,kafka-2:9092'.")
    security_protocol: str = Field(default="PLAINTEXT", description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.")
    sasl_mechanism: str | None = Field(default=None, description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER.")
    username: str | None = Field(default=None, description="For SASL; an API key at many vendors.")
    password: str | None = Field(repr=False, default=None, description="For SASL. Give it as an EnvVar.")
    ssl_ca_location: str | None = Field(default=None, description="File with the certificate authority.")
    settings: dict[str, str] = Field(
        repr=False,
        default={},
        description="More of librdkafka's settings, by their own names, as in {'client.rack': 'eu-1a'}.",
    )
    timeout_seconds: float = Field(
        default=30.0, description="Longest wait for the broker's answer, or for the next message."
    )

    def connection(self) -> Connection:
        """Return the factory of clients; makes no call."""
        known = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.username,
            "sasl.password": self.password,
            "ssl.ca.location": self.ssl_ca_location,
        }
        if taken := sorted(set(known) & set(self.settings)):
            raise ConfigError(f"settings has {', '.join(taken)}, which KafkaResource has arguments for. Use those.")
        given = {name: value for name, value in known.items() if value is not None}
        return Connection({**given, **self.settings}, self.timeout_seconds)


def kafka_of(resources: Any, resource_key: str) -> Connection:
    """Return the connection of the resource of this name. Raises ConfigError for another kind of resource."""
    resource = getattr(resources, resource_key)
    if not isinstance(resource, KafkaResource):
        raise ConfigError(f"The resource '{resource_key}' is a {type(resource).__name__}; it must be a KafkaResource.")
    return resource.connection()
