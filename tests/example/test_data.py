"""The gold standard as the example loads it: the real file, so set-up must have run."""

from __future__ import annotations

import pytest

from example_project import data


@pytest.fixture(scope="module")
def tweets():
    return data.load()


def test_the_tweets_are_whole(tweets):
    assert tweets.height == tweets["text_id"].n_unique() == 4200
    assert dict(tweets["label"].value_counts().rows()) == {"positive": 2646, "negative": 1195, "neutral": 359}
    assert tweets["n_ratings"].min() == 20
    assert tweets["ratings"].list.len().to_list() == tweets["n_ratings"].to_list()


@pytest.mark.parametrize("part", data.PARTS)
def test_ids_are_unique_and_ratings_are_on_the_scale(part):
    texts = data.load(part)
    assert texts["text_id"].is_unique().all()
    assert texts["ratings"].explode().is_between(-4, 4).all()


def test_the_label_is_neutral_within_the_band_and_at_its_ends():
    assert [data.label_of(mean) for mean in (-0.21, -0.2, 0.0, 0.2, 0.21)] == [
        "negative",
        "neutral",
        "neutral",
        "neutral",
        "positive",
    ]


def test_a_days_rows_do_not_depend_on_the_order_or_number_loaded(tweets):
    day = data.DAYS[0]
    small, large = data.subset(tweets, day, 20), data.subset(tweets.reverse(), day, 50)
    assert small["text_id"].to_list() == large["text_id"].to_list()[:20]
    assert set(small["day"]) == {day}


def test_every_day_has_the_examples_rows(tweets):
    assert all(data.subset(tweets, day).height == data.ROWS_PER_DAY for day in data.DAYS)


def test_the_prompt_was_chosen_on_other_days_than_the_examples(tweets):
    assert not set(data.held_out(tweets)["day"]) & set(data.DAYS[:3])


def test_another_file_under_the_name_is_refused(tmp_path):
    wrong = tmp_path / "vaderSentiment-2.5.tar.gz"
    wrong.write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        data.load(sdist=wrong)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"example_project\.bootstrap"):
        data.load(sdist=tmp_path / "none")
