"""Run one platform, and print what does not hold:

python -m tests.platforms 'a.partitions=daily b.partitions=weekly'
python -m tests.platforms --shrink '…'    # with the fewest differences from the plain one that still fail
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dagster_llm_batch.testing.emulator import local_s3
from tests.crash.postgres import postgres
from tests.platforms.journey import Servers
from tests.platforms.oracle import problems_of
from tests.platforms.platform_value import Platform
from tests.platforms.vendors import BUCKET


@contextmanager
def servers(*, with_postgres: bool) -> Iterator[Servers]:
    """Start what platforms share."""
    with ExitStack() as stack:
        new_database = stack.enter_context(postgres()) if with_postgres else None
        yield Servers(stack.enter_context(local_s3(BUCKET)), new_database)


def set_variable(name: str, value: str | None) -> None:
    """Set a variable of this process, or take it away."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def run(platform: Platform, shared: Servers) -> list[str]:
    """Return what does not hold of a platform, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="platform") as folder:
        return problems_of(platform, Path(folder), shared, set_variable)


def shrink(platform: Platform, shared: Servers) -> Platform:
    """Return the platform with the fewest differences that fails with a problem of the same kind."""
    kind = run(platform, shared)[0].split(":")[0]
    changes = dict(part.split("=") for part in str(platform).split())
    for name in list(changes):
        fewer = {other: value for other, value in changes.items() if other != name}
        try:
            smaller = Platform.of(fewer)
        except ValueError:
            continue
        if any(problem.startswith(kind) for problem in run(smaller, shared)):
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
