"""The VADER gold standard: 4200 tweets, each rated by 20 to 99 people from -4 (most negative) to 4 (most positive).

Hutto & Gilbert (ICWSM 2014), MIT licence. It is read straight from the source distribution of vaderSentiment 2.5,
which set-up downloads to `.example/` and which is never committed. Each read checks the file's digest and refuses any
other file.

The tweets do not have dates, so the example assigns days. A tweet's day and its rank within the day come from a hash of
its id, so they do not depend on other tweets.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tarfile
from collections.abc import Collection, Sequence
from datetime import date, timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Dagster can load the definitions without it
    import polars as pl

__all__ = [
    "CASCADE_ROWS",
    "DAYS",
    "NEUTRAL_BAND",
    "PARTS",
    "RATERS",
    "ROWS_PER_DAY",
    "SDIST",
    "between",
    "held_out",
    "judged_by_others",
    "label_of",
    "label_of_others",
    "label_of_raters",
    "load",
    "rated",
    "subset",
]

SDIST = Path(__file__).resolve().parent.parent / ".example" / "vaderSentiment-2.5.tar.gz"
SDIST_SHA256 = "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
PARTS = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
DAYS = tuple(date(2026, 1, 1) + timedelta(days=n) for n in range(30))
"""The 30 days over which the texts are spread; the first three are the example's daily partitions."""
ROWS_PER_DAY, CASCADE_ROWS = 100, 2_000
RATERS = 7
"""The number of people who answer as the cascade's oracle: the first of a text's ratings. The others are its gold."""
NEUTRAL_BAND = 0.2
"""A mean rating from -0.2 to 0.2, both ends included, is neutral."""

_INNER = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_FOLDER = "hutto_ICWSM_2014"


def label_of(mean: float) -> str:
    """Return the gold label of a mean rating."""
    if mean > NEUTRAL_BAND:
        return "positive"
    return "negative" if mean < -NEUTRAL_BAND else "neutral"


def label_of_raters(ratings: Sequence[int]) -> str:
    """Return the label of a text by the first RATERS of its ratings."""
    return label_of(fmean(ratings[:RATERS]))


def label_of_others(ratings: Sequence[int]) -> str:
    """Return the label of a text by the ratings of all others, which is independent of `label_of_raters`."""
    return label_of(fmean(ratings[RATERS:]))


def load(part: str = "tweets", sdist: Path = SDIST) -> pl.DataFrame:
    """Return all texts of one part, in the order of the file.

    Columns:
        text_id: Unique over all parts, as in `tweets-17`.
        text, day: The text and its assigned day.
        mean: The published mean of the ratings.
        ratings, n_ratings: Each person's rating, -4 to 4. For 196 tweets, their mean differs slightly from the
            published one, without effect on the label.
        label: The gold label; see `NEUTRAL_BAND`.
        rank: Hex digits that order the rows of a day.
    """
    import polars as pl

    if part not in PARTS:
        raise ValueError(f"There is no part {part!r}. The parts are: {', '.join(PARTS)}.")
    rows = []
    with tarfile.open(fileobj=io.BytesIO(_inner_archive(sdist))) as archive:
        raw = {row[0]: [int(r) for r in ast.literal_eval(row[3])] for row in _read(archive, part, "anonDataRatings")}
        for number, mean, text in (row[:3] for row in _read(archive, part, "GroundTruth")):
            text_id = f"{part}-{number}"
            digest = hashlib.sha256(text_id.encode()).hexdigest()
            rows.append(
                {
                    "text_id": text_id,
                    "text": text,
                    "day": DAYS[int(digest[:8], 16) % len(DAYS)],
                    "mean": float(mean),
                    "ratings": raw[number],
                    "n_ratings": len(raw[number]),
                    "label": label_of(float(mean)),
                    "rank": digest[8:24],
                }
            )
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "text_id": pl.String,
        "text": pl.String,
        "day": pl.Date,
        "mean": pl.Float64,
        "ratings": pl.List(pl.Int8),
        "n_ratings": pl.Int64,
        "label": pl.String,
        "rank": pl.String,
    }
    return pl.DataFrame(rows, schema=schema)


def rated(days: Collection[str], rows: int = ROWS_PER_DAY) -> pl.DataFrame:
    """Return the subsets of some days, written like 2026-01-01."""
    import polars as pl

    texts = load()
    return pl.concat([subset(texts, day, rows) for day in DAYS if day.isoformat() in days])


def subset(texts: pl.DataFrame, day: date, rows: int = ROWS_PER_DAY) -> pl.DataFrame:
    """Return the first `rows` texts of a day by rank, or all if it has fewer. A larger subset contains the smaller."""
    import polars as pl

    return texts.filter(pl.col("day") == day).sort("rank").head(rows)


def between(rows: int = CASCADE_ROWS) -> pl.DataFrame:
    """Return the cascade's texts: the first `rows` by rank of the days between the example's and the held-out days."""
    import polars as pl

    texts = load()
    return texts.filter(pl.col("day").is_between(DAYS[3], DAYS[-11])).sort("rank").head(rows)


def judged_by_others(texts: pl.DataFrame) -> pl.DataFrame:
    """Return the `text_id` and the `label` of these texts by the ratings of all but the first RATERS people."""
    import polars as pl

    labels = [label_of_others(ratings) for ratings in texts["ratings"]]
    return texts.select("text_id", pl.Series("label", labels))


def held_out(texts: pl.DataFrame, days: int = 10) -> pl.DataFrame:
    """Return the texts of the last days, for choosing a prompt. The example itself labels the first three days."""
    import polars as pl

    return texts.filter(pl.col("day") >= DAYS[-days]).sort("rank")


def _inner_archive(sdist: Path) -> bytes:
    how = "Run `python3 -m example_project.bootstrap`, which downloads it."
    if not sdist.is_file():
        raise FileNotFoundError(f"The gold standard {sdist} is not there. {how}")
    content = sdist.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != SDIST_SHA256:
        raise ValueError(f"{sdist} has the SHA-256 {got}, not {SDIST_SHA256}. Delete it. {how}")
    with tarfile.open(fileobj=io.BytesIO(content)) as outer:
        return _member(outer, _INNER)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file in the archive.")
    return file.read()


def _read(archive: tarfile.TarFile, part: str, kind: str) -> list[list[str]]:
    content = _member(archive, f"{_FOLDER}/{part}_{kind}.txt").decode("utf-8-sig")  # some of the files begin with a BOM
    return [line.rstrip("\r").split("\t") for line in content.split("\n") if line.strip()]
