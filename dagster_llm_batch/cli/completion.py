"""Names for the shell to complete: assets and partitions of the definitions, or of the ledger where that is given.

Completion prints names or nothing: an error here would land in the line that a person types. Loading definitions takes
seconds, so their names are kept for some minutes in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click

from dagster_llm_batch.cli.deployment import DeploymentAccess, Options

__all__ = ["complete_assets", "complete_partitions"]

# These parameters of commands take names of labeled assets.
_ASSET_PARAMETERS = ("asset", "assets", "target", "dataset")
_KEPT_SECONDS = 300.0


def complete_assets(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of labeled assets that begin with the typed text, without names that are typed already."""
    given = ctx.params.get(parameter.name or "")
    typed = given if isinstance(given, tuple | list) else ()
    return sorted(name for name in _names(ctx) if name.startswith(incomplete) and name not in typed)


def complete_partitions(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the partition keys that begin with the typed text: of the assets in the same command line, or of all."""
    del parameter
    names = _names(ctx)
    given = (ctx.params.get(name) for name in _ASSET_PARAMETERS)
    assets = {name for value in given if value for name in ([value] if isinstance(value, str) else value)}
    # Before an option that lacks its value, click leaves arguments as words.
    assets.update(ctx.args)
    keys = {key for name in (assets & names.keys() or names) for key in names[name]}
    return sorted(key for key in keys if key.startswith(incomplete))


def _names(ctx: click.Context) -> Mapping[str, list[str]]:
    """Return the partitions of each labeled asset of the deployment that the command line names; empty if unknown."""
    options = Options(**{field.name: ctx.params.get(field.name) for field in fields(Options)})
    silent = io.StringIO()
    # User code may print while it is imported, fail, or exit.
    with (
        contextlib.suppress(Exception, SystemExit),
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        if options.ledger is not None:
            return _submitted(options)
        kept = _kept_file(options)
        with contextlib.suppress(OSError, ValueError):
            if time.time() - kept.stat().st_mtime < _KEPT_SECONDS:
                known: dict[str, list[str]] = json.loads(kept.read_text(encoding="utf-8"))
                return known
        with ExitStack() as stack:
            code = DeploymentAccess(options, stack, takes_ledger=False).code
            names = {name: code.partitions(dataset) for name, dataset in code.datasets.items()}
        with contextlib.suppress(OSError):
            # Partitions can be names of customers, which other users of the machine must not read.
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept.unlink(missing_ok=True)
            kept.touch(mode=0o600)
            kept.write_text(json.dumps(names), encoding="utf-8")
        return names
    return {}


def _submitted(options: Options) -> dict[str, list[str]]:
    """Return the assets and partitions of the submissions in a ledger."""
    names: dict[str, list[str]] = {}
    with ExitStack() as stack:
        deployment = DeploymentAccess(options, stack, takes_ledger=True)
        for submission in deployment.ledger.submissions.list_all(deployment.namespace):
            names.setdefault(submission.asset, []).extend([submission.partition] if submission.partition else [])
    return names


def _kept_file(options: Options) -> Path:
    """Return the file with the names of these definitions."""
    environment = [os.environ.get("DAGSTER_HOME"), os.environ.get("VIRTUAL_ENV")]
    place: list[Any] = [os.getcwd(), asdict(options), environment]  # noqa: PTH109 - text
    digest = hashlib.blake2b(json.dumps(place, sort_keys=True).encode(), digest_size=12).hexdigest()
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "dagster-llm-batch" / f"completion-{digest}.json"
