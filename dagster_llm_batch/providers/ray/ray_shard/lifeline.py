"""Runs a command to its end, or until standard input closes, which it does when its parent dies. Standard library only.

    python lifeline.py COMMAND …

Then all that is left in the command's process group is killed: engines that fork workers leave them behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main(words: list) -> int:  # type: ignore[type-arg]  # no generics at run time
    """Return the command's exit code."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 -- the user's own

    def end(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 1):
            pass
        end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    threading.Thread(target=watch, daemon=True).start()
    try:
        return process.wait()
    finally:
        end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
