"""`python -m example_project.labelers.raters -i in.jsonl -o out.jsonl`: people answer, from their recorded ratings.

Each text of the gold standard was rated by at least 20 people. The first of them answer here: `label` is the label of
their mean rating, and `confidence` the share of them who gave that label alone. The gold of the cascade is of all
others, so the two are independent. A text that they did not rate is refused. Usage counts words between white space, as
for the lexicon.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from example_project import data
from example_project.labelers.run_batch import Answer, Refusal, command
from example_project.labelers.vader import completion, last_text

__all__ = ["answering", "main"]

_FINGERPRINT = "raters"


@contextlib.contextmanager
def answering(model: str, _options: object = None) -> Iterator[Answer]:
    """Yield the function that answers with the recorded ratings."""
    texts = data.load()
    answers = {text: _answer(ratings) for text, ratings in texts.select("text", "ratings").iter_rows()}

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        text = last_text(body)
        if text not in answers:
            raise Refusal(400, "Nobody rated this text: only tweets of the gold standard have answers.")
        return completion(model, answers[text], body, _FINGERPRINT)

    yield answer


def _answer(ratings: Sequence[int]) -> dict[str, object]:
    label = data.label_of_raters(ratings)
    alone = [data.label_of(rating) for rating in ratings[: data.RATERS]]
    return {"label": label, "is_positive": label == "positive", "confidence": alone.count(label) / len(alone)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return command("example_project.labelers.raters", "raters", answering, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
