"""The vendors of a platform: their models, and their resources before the emulators."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

__all__ = ["BUCKET", "VENDORS", "Places", "Vendor", "environment", "settings_of"]

BUCKET = "platforms"
_LABELER = Path(__file__).with_name("labeler.py")
_TIMEOUT = {"timeout_seconds": 20.0, "settle_seconds": 1.0}


@dataclass(frozen=True)
class Vendor:
    """One vendor in one form. `kind` is its word in `defs.yaml`; `named` is true for a provider in `providers=`."""

    provider: str
    kind: str
    model: str
    larger: str
    embedding: str = ""
    named: bool = False
    most: str = "max_tokens"


VENDORS: Mapping[str, Vendor] = {
    "openai": Vendor("openai", "openai", "gpt-4o-mini", "gpt-4o", "text-embedding-3-small"),
    "openai_named": Vendor("openai_eu", "openai", "gpt-4o-mini", "gpt-4o", "text-embedding-3-small", named=True),
    "anthropic": Vendor("anthropic", "anthropic", "claude-haiku-4-5", "claude-sonnet-4-5"),
    "anthropic_named": Vendor("claude_eu", "anthropic", "claude-haiku-4-5", "claude-sonnet-4-5", named=True),
    "bedrock": Vendor(
        "bedrock",
        "bedrock",
        "anthropic.claude-haiku-4-5-20251001-v1:0",
        "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "amazon.titan-embed-text-v2:0",
    ),
    "vertex": Vendor("vertex", "vertex", "gemini-2.5-flash", "gemini-2.5-pro", most="max_output_tokens"),
    "gemini": Vendor(
        "gemini", "gemini", "gemini-2.5-flash", "gemini-2.5-pro", "gemini-embedding-001", most="max_output_tokens"
    ),
    "mistral": Vendor("mistral", "mistral", "ministral-8b-2512", "mistral-large-2512", named=True),
    "azure": Vendor("azure", "azure", "gpt-4o-mini", "gpt-4o", "text-embedding-3-small", named=True),
    "groq": Vendor("groq", "groq", "openai/gpt-oss-20b", "openai/gpt-oss-120b", named=True),
    "vllm": Vendor("own", "vllm", "small", "large", named=True),
    "openrouter": Vendor("openrouter", "openrouter", "openai/gpt-4o-mini", "openai/gpt-4o"),
    "command": Vendor("command", "command", "small", "large"),
    "command_named": Vendor("lab", "command", "small", "large", named=True),
}


@dataclass(frozen=True)
class Places:
    """The addresses of a platform's servers, and its folder."""

    folder: str
    ledger_url: str
    openai: str
    azure: str
    anthropic: str
    bedrock: str
    vertex: str
    bigquery: str
    gemini: str
    openrouter: str
    mistral: str
    s3: str

    @classmethod
    def of(cls, emulator: Emulator, folder: Path, ledger_url: str, s3_url: str) -> Places:
        """Return the places of this emulator."""
        return cls(
            folder=str(folder),
            ledger_url=ledger_url,
            openai=emulator.openai_base_url,
            azure=emulator.azure_base_url,
            anthropic=emulator.anthropic_base_url,
            bedrock=emulator.bedrock_url,
            vertex=emulator.vertex_base_url,
            bigquery=emulator.bigquery_url,
            gemini=emulator.gemini_base_url,
            openrouter=emulator.openrouter_base_url,
            mistral=emulator.mistral_base_url,
            s3=s3_url,
        )

    @property
    def document(self) -> dict[str, str]:
        """For a file."""
        return asdict(self)


def variable(vendor: str) -> str:
    """Return the environment variable with this vendor's key."""
    return f"PLATFORM_{vendor.upper()}_KEY"


def environment(keys: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with the vendors' keys, by the state of each key: right, empty or wrong."""
    values = {"right": DEFAULT_KEY, "empty": "", "wrong": "sk-of-another-account"}
    return {variable(vendor): values[key] for vendor, key in keys.items() if key in values}


def settings_of(vendor: str, key: str, places: Places, own_key: Any) -> dict[str, Any]:
    """Return the settings of a vendor's resource; `own_key` stands for its key, in Python or in YAML."""
    match VENDORS[vendor].kind:
        case "command":
            program = "no-such-program" if key == "wrong" else sys.executable
            answers = f"{places.folder}/answers.jsonl"
            command = [program, "-S", str(_LABELER), "{input}", "{output}", answers]
            return {"command": command, "workdir": f"{places.folder}/jobs-{vendor}"}
        case "bedrock":
            return {
                "role_arn": "arn:aws:iam::123456789012:role/batch",
                "s3_uri": f"s3://{BUCKET}/{Path(places.folder).name}",
                "region_name": "us-east-1",
                "endpoint_url": places.bedrock,
                "s3_endpoint_url": places.s3,
                "aws_access_key_id": own_key,
                "aws_secret_access_key": "emulator",
                "read_quotas": False,
                "min_requests": 1,
                **_TIMEOUT,
            }
        case "vertex":
            return {
                "project": "emulator",
                "location": "us-central1",
                "bigquery_dataset": "emulator",
                "bigquery_url": places.bigquery,
                "base_url": places.vertex,
                "access_token": own_key,
                **_TIMEOUT,
            }
        case "groq" | "vllm" | "openai":
            return {"api_key": own_key, "base_url": places.openai, **_TIMEOUT}
        case kind:
            return {"api_key": own_key, "base_url": getattr(places, kind), **_TIMEOUT}
