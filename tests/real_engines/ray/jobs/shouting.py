"""Callables on the workers: each answers with the text in capitals."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path


def shout(bodies: Sequence[dict]) -> list[dict | str]:
    return [_answer(body) for body in bodies]


class Slow:
    """A callable that records its process and texts in a file, waits for another file, and fails for bad rows.

    A text that starts with "later" waits only if other texts came before it.
    """

    def __init__(self) -> None:
        self._folder = Path(os.environ["SHOUTING"])

    def __call__(self, bodies: Sequence[dict]) -> list[dict | str]:
        answers = []
        for body in bodies:
            text = body["messages"][-1]["content"]
            with (self._folder / "asked").open("a") as asked:
                asked.write(f"{os.getpid()} {text}\n")
                is_first = asked.tell() == len(f"{os.getpid()} {text}\n")
            if text.startswith("wait") or (text.startswith("later") and not is_first):
                hopeless = time.monotonic() + 120  # a failed test leaves no process behind forever
                while not (self._folder / "gate").exists() and time.monotonic() < hopeless:
                    time.sleep(0.05)
            if text.startswith("bad"):
                raise ValueError("cannot answer that")
            answers.append(_answer(body))
        return answers


def _answer(body: dict) -> dict:
    content = body["messages"][-1]["content"]
    message = {"role": "assistant", "content": content.upper()}
    usage = {"prompt_tokens": len(content) + 1, "completion_tokens": len(content)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"model": body["model"], "choices": [choice], "usage": usage}
