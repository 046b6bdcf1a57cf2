"""Run one platform, and print each property that fails:

python -m tests.platforms 'a.partitions=daily b.partitions=weekly'
python -m tests.platforms --shrink '…'    # with the fewest differences from the plain one that still fail
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tests.conftest  # noqa: F401 - the tests' set-up, so that it takes as long as in tests
from dagster_llm_batch.testing.emulator import local_s3
from tests.crash.postgres import postgres
from tests.platforms.factors import SLOTS
from tests.platforms.journey import Servers
from tests.platforms.oracle import problems_of
from tests.platforms.platform_value import Platform
from tests.platforms.vendors import BUCKET


@contextmanager
def servers(*, with_postgres: bool) -> Iterator[Servers]:
    """Start the servers that platforms share."""
    with ExitStack() as stack:
        new_database = stack.enter_context(postgres()) if with_postgres else None
        yield Servers(stack.enter_context(local_s3(BUCKET)), new_database)


def set_variable(name: str, value: str | None) -> None:
    """Set a variable of this process, or remove it."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def run(platform: Platform, shared: Servers) -> list[str]:
    """Run a platform in a temporary folder, and return its problems."""
    with tempfile.TemporaryDirectory(prefix="platform") as folder:
        return problems_of(platform, Path(folder), shared, set_variable)


def shrink(platform: Platform, shared: Servers) -> Platform:
    """Return the platform with the fewest differences that fails at the same stage, or this one if it does not fail.

    Removes datasets first, and then each difference that the failure does not need.
    """
    found = run(platform, shared)
    if not found:
        return platform
    stage = found[0].partition(":")[0]

    def fails(changes: Mapping[str, str]) -> bool:
        try:
            smaller = Platform.of(changes)
        except ValueError:
            return False
        sys.stderr.write(f"{smaller}\n")
        return any(problem.startswith(f"{stage}:") for problem in run(smaller, shared))

    changes = dict(part.split("=") for part in str(platform).split())
    for count in range(1, len(platform.slots)):
        there = SLOTS[:count]
        fewer = {name: value for name, value in changes.items() if "." not in name or name[0] in there}
        if fails({**fewer, "datasets": str(count)}):
            changes = {**fewer, "datasets": str(count)}
            break
    for name in [name for name in changes if name != "datasets"]:
        fewer = {other: value for other, value in changes.items() if other != name}
        if fails(fewer):
            changes = fewer
    return Platform.of(changes)


def main() -> None:
    """See the module."""
    *options, text = sys.argv[1:]
    platform = Platform.parse(text)
    with servers(with_postgres=platform["ledger"] == "postgresql") as shared:
        if "--shrink" in options:
            platform = shrink(platform, shared)
            sys.stdout.write(f"{platform}\n")
        problems = run(platform, shared)
    sys.stdout.write(f"{platform.described()}\n")
    sys.stdout.write("".join(f"- {problem}\n" for problem in problems) or "All holds.\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
