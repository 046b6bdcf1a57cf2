"""Asset keys: of an asset that the user names in any form, and of the assets that belong to it."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from dagster_llm_batch.errors import ConfigError

__all__ = ["Upstream", "key_beside", "only_key", "prefixed_key", "upstream_key"]

Upstream = str | Sequence[str] | dg.AssetKey | dg.AssetsDefinition | dg.AssetSpec


def upstream_key(upstream: Upstream) -> dg.AssetKey:
    """Return the key of one asset. Raises ConfigError for a definition of several assets."""
    if isinstance(upstream, dg.AssetKey):
        return upstream
    if isinstance(upstream, str):
        return dg.AssetKey.from_user_string(upstream)
    if isinstance(upstream, dg.AssetSpec):
        return upstream.key
    if not isinstance(upstream, dg.AssetsDefinition):
        return dg.AssetKey(upstream)
    return only_key([spec.key for spec in upstream.specs])


def only_key(keys: Sequence[dg.AssetKey]) -> dg.AssetKey:
    """Return the only key. Raises ConfigError unless there is exactly one."""
    if len(keys) != 1:
        names = ", ".join(key.to_user_string() for key in keys)
        raise ConfigError(f"Expected one asset, got {len(keys)}: {names}. Name the one to read by its asset key.")
    return keys[0]


def prefixed_key(key_prefix: Sequence[str] | str, name: str) -> dg.AssetKey:
    """Return the key of an asset that is declared with these two arguments. A prefix given as text is one part."""
    return dg.AssetKey([*([key_prefix] if isinstance(key_prefix, str) else key_prefix), name])


def key_beside(key: dg.AssetKey, suffix: str) -> dg.AssetKey:
    """Return the key of `<name>_<suffix>`, with the same prefix as `<name>`."""
    *prefix, name = key.path
    return dg.AssetKey([*prefix, f"{name}_{suffix}"])
