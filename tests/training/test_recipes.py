"""The built-in recipes' data keep the law: what is held out was never learned from, and the same seed gives the same rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from toprope_shared.errors import InputError
from toprope_shared.tensors import check_all
from toprope_shared.text import FIRST, UNKNOWN, tokens
from toprope_training import catalogue, ratings
from toprope_training.recipe import Data, Rows
from toprope_training.recipes import diagnosis, recommender, support
from toprope_training.recipes.diagnosis import balanced_accuracy

CSV = "userId,movieId,rating,timestamp\n"


def data_of(name: str, seed: int = 0) -> Data:
    return catalogue.load(name).data(seed)


def keys(rows: Rows) -> set[bytes]:
    """Return each row's inputs as bytes; a rating's with its film."""
    parts = list(rows.inputs.values())
    if "user" in rows.inputs:
        parts.append(rows.targets[:, 0])
    return {b"".join(part[number].tobytes() for part in parts) for number in range(len(rows))}


@pytest.mark.parametrize("name", catalogue.BUILT_IN)
def test_the_rows_fit_the_specs(name: str) -> None:
    recipe = catalogue.load(name)
    for rows in (data := recipe.data(0)).train, data.holdout:
        check_all(recipe.inputs, rows.inputs)
        assert {len(array) for array in rows.inputs.values()} == {len(rows)}
        assert len(rows) > 0


@pytest.mark.parametrize("name", catalogue.BUILT_IN)
def test_no_row_stands_in_both_parts(name: str) -> None:
    data = data_of(name)
    assert keys(data.train).isdisjoint(keys(data.holdout))


@pytest.mark.parametrize("name", catalogue.BUILT_IN)
def test_the_same_seed_gives_the_same_rows_and_another_seed_others(name: str) -> None:
    first, again, other = data_of(name, 3), data_of(name, 3), data_of(name, 4)
    for part in ("train", "holdout"):
        one, two = getattr(first, part), getattr(again, part)
        assert np.array_equal(one.targets, two.targets)
        assert all(np.array_equal(one.inputs[key], two.inputs[key]) for key in one.inputs)
    assert keys(first.holdout) != keys(other.holdout)


@pytest.mark.parametrize("name", catalogue.BUILT_IN)
def test_classes_have_labels_and_every_input_that_needs_it_its_preprocessing(name: str) -> None:
    recipe = catalogue.load(name)
    data = recipe.data(0)
    assert {step.input for step in recipe.preprocessing()} <= {spec.name for spec in recipe.inputs}
    if recipe.labels and data.train.targets.ndim == 1:
        assert set(data.train.targets) == set(data.holdout.targets) == set(range(len(recipe.labels)))


def test_recipes_read_their_data_without_tensorflow() -> None:
    program = (
        "import sys; from toprope_training import catalogue; "
        "[catalogue.load(name).data(0) for name in catalogue.BUILT_IN]; print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["support", "recommender"])
def test_what_a_recipe_learns_of_its_data_is_not_known_before(name: str) -> None:
    fresh = type(catalogue.load(name))()
    with pytest.raises(InputError, match="call `data` first"):
        fresh.preprocessing()


def test_the_held_out_patients_have_the_classes_of_all() -> None:
    data = data_of("diagnosis")
    assert abs(data.train.targets.mean() - data.holdout.targets.mean()) < 0.01
    assert (len(data.train), len(data.holdout)) == (427, 142)


def test_balanced_accuracy_counts_every_class_alike() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    assert balanced_accuracy(scores, np.array([0, 0, 0, 1])) == 0.5
    assert diagnosis.RECIPE.labels[0] == "malignant"


def test_the_vocabulary_is_of_the_training_messages_alone() -> None:
    recipe = support.Support()
    data = recipe.data(1)
    train, holdout = support.split(support.messages(), 1)
    words = set(support.vocabulary(train))
    assert words == {token for message in train for token in tokens(message.text)}
    assert recipe.known.tokenizer.vocabulary == support.vocabulary(train)
    assert UNKNOWN in data.holdout.inputs["tokens"]
    assert UNKNOWN not in data.train.inputs["tokens"]
    assert data.train.inputs["tokens"].max() < FIRST + len(words)
    assert any(token not in words for message in holdout for token in tokens(message.text))


def test_messages_are_different_and_an_exchange_stays_on_one_side() -> None:
    every = support.messages()
    assert len({tuple(tokens(message.text)) for message in every}) == len(every)
    train, holdout = support.split(every, 0)
    assert len(train) + len(holdout) == len(every)
    assert {message.group for message in train}.isdisjoint(message.group for message in holdout)
    for some in (train, holdout):
        assert {(message.topic, message.language) for message in some} == {
            (topic, language) for topic in support.TOPICS for language in support.LANGUAGES
        }


def test_the_made_up_ratings_are_like_ratings() -> None:
    found = recommender.generate(0)
    assert 30_000 < len(found) < 50_000
    assert (found.users.min(), found.users.max(), found.items.max()) == (1, recommender.USERS, recommender.ITEMS)
    assert set(np.unique(found.ratings * 2)) <= set(range(1, 11))
    counts = np.sort(np.bincount(found.items))[::-1]
    assert counts[: recommender.ITEMS // 10].sum() > 0.2 * len(found), "a tenth of the items has far more than its share"


@pytest.fixture
def rated(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of ratings: twelve films and a user who liked six of them, the last one at the end."""

    def write(name: str = "ratings.csv", *, between: str = ",", header: str = CSV, more: str = "") -> Path:
        rows = [(7, 100 + film, 4.5 if film % 2 else 3, 1000 + film) for film in range(12)]
        text = header + "".join(between.join(map(str, row)) + "\n" for row in rows) + more
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "between", "header"),
    [("ratings.csv", ",", CSV), ("u.data", "\t", ""), ("ratings.dat", "::", "")],
)
def test_every_form_of_a_ratings_file_is_read(rated: Callable[..., Path], name: str, between: str, header: str) -> None:
    found = ratings.read(rated(name, between=between, header=header))
    assert (len(found), found.users[0], found.items[-1], found.ratings[1], found.times[0]) == (12, 7, 111, 4.5, 1000)


def test_columns_are_found_by_name_among_others(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text('\ufefftimestamp,"comment",movieId,userId,rating\r\n5,"a, ""b""\nc",2,1,3.5\r\n\r\n6,,4,3,5\r\n')
    found = ratings.read(path)
    assert (found.users.tolist(), found.items.tolist(), found.times.tolist()) == ([1, 3], [2, 4], [5, 6])
    assert found.ratings.tolist() == [3.5, 5]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("ratings.csv", b"", r"ratings.csv is empty; expected a header with userId,movieId,rating,timestamp"),
        ("ratings.csv", CSV.encode(), r"has no ratings; expected ratings.csv \(with the header"),
        ("ratings.csv", b"userId,movieId,rating\n1,2,3\n", r"line 1 has no column timestamp; expected a header"),
        ("ratings.csv", b"1,2,3,4\n", r"line 1 has no column userId, movieId, rating, timestamp"),
        ("ratings.csv", CSV.encode() + b"1,2,3,4\n1,2\n", r"line 3 has 2 cells; expected 4 as in the header"),
        ("ratings.csv", CSV.encode() + b"one,2,3,4\n", r"line 2: userId is 'one'; expected a whole number"),
        ("ratings.csv", CSV.encode() + b"1,-2,3,4\n", r"line 2: movieId is '-2'"),
        ("ratings.csv", CSV.encode() + b"1,2,3,yesterday\n", r"line 2: timestamp is 'yesterday'"),
        ("ratings.csv", CSV.encode() + b"1,2,good,4\n", r"line 2: rating is 'good'; expected a number from 0.5 to 5"),
        ("ratings.csv", CSV.encode() + b"1,2,nan,4\n", r"line 2: rating is 'nan'"),
        ("ratings.csv", CSV.encode() + b"1,2,6,4\n", r"line 2: rating is '6'"),
        ("ratings.csv", CSV.encode() + b"1,2,0,4\n", r"line 2: rating is '0'"),
        ("ratings.csv", CSV.encode() + b"9999999999999999999,2,3,4\n", r"line 2: userId is '9999999999999999999'"),
        ("ratings.csv", CSV.encode() + b'1,2,3,"4\n', r"line 2 is not csv"),
        ("ratings.csv", CSV.encode() + b"1,2,3,4\0\n", r"line 2 holds binary data"),
        ("ratings.csv", b"PK\x03\x04\xff\xfe\x00", r"is not text|holds binary data"),
        ("u.data", b"", r"has no ratings"),
        ("u.data", b"1\t2\t3\n", r"line 1 has 3 cells; expected userId, movieId, rating, timestamp with tabs between"),
        ("u.data", b"1,2,3,4\n", r"line 1 has 1 cells"),
        ("ratings.dat", b"1::2::3::4\n1:2:3:4\n", r"line 2 has 1 cells; expected .* with `::` between"),
        ("ratings.txt", b"1,2,3,4\n", r"is no file of ratings by its name; expected ratings.csv"),
    ],
)
def test_what_is_wrong_with_a_ratings_file_is_a_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        ratings.read(tmp_path / name)


def test_a_folder_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give the file in it"):
        ratings.read(tmp_path)
    with pytest.raises(InputError, match="can't be read: No such file"):
        ratings.read(tmp_path / "ratings.csv")


def test_too_many_ratings_are_refused_while_they_are_read(rated: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="has more than 5 ratings; give a smaller set"):
        ratings.read(rated(), limit=5)


def recommend(path: Path) -> tuple[recommender.Recommender, Data]:
    recipe = recommender.Recommender()
    recipe.source = path
    return recipe, recipe.data(0)


def test_the_last_film_that_a_user_liked_is_held_out_and_nothing_later_is_learned(rated: Callable[..., Path]) -> None:
    more = "7,112,2,2000\n8,112,5,1\n8,113,5,2\n"
    recipe, data = recommend(rated(more=more))
    assert recipe.labels == tuple(str(100 + film) for film in range(14))
    assert data.holdout.inputs["user"].tolist() == [[0]], "user 8 has too few likes"
    assert data.holdout.targets.tolist() == [[11, 9]]
    learned = set(zip(data.train.inputs["user"][:, 0].tolist(), data.train.targets[:, 0].tolist(), strict=True))
    assert learned == {*((0, film) for film in range(11)), (1, 12), (1, 13)}
    assert recipe.known.rated.sum() == len(learned)
    assert not recipe.known.rated[0, 11]
    assert "7 is 0 and 8 is 1" in recipe.preprocessing()[0].text


def test_of_two_ratings_of_a_film_the_later_counts(rated: Callable[..., Path]) -> None:
    _, data = recommend(rated(more="7,101,1,1005\n7,103,5,3000\n"))
    assert data.holdout.targets.tolist() == [[3, 10]]
    rows = data.train.targets.tolist()
    assert [1, 2] in rows
    assert [1, 9] not in rows


def test_titles_come_from_the_file_beside(rated: Callable[..., Path]) -> None:
    path = rated()
    beside = path.with_name("movies.csv")
    beside.write_text('movieId,title,genres\n100,"Jar, The (1950)",Comedy\n')
    recipe, _ = recommend(path)
    assert recipe.labels[:2] == ("100 Jar, The (1950)", "101")
    beside.write_text("movieId,name\n100,x\n")
    with pytest.raises(InputError, match=r"movies\.csv, line 1 has no column title"):
        recommend(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,2,5,1\n", "the ratings name 1 films; expected more than 10"),
        ("".join(f"1,{film},3,1\n" for film in range(12)), "no user has 5 ratings of 4 or better"),
        ("".join(f"1,{film},5,1\n" for film in range(100_001)), "the ratings name 100,001 films; at most 100,000"),
        (
            "".join(f"{row % 6000},{row},5,1\n" for row in range(6000)),
            "6,000 users times 6,000 films is more than 32,000,000",
        ),
    ],
)
def test_ratings_that_are_too_few_or_too_many_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(CSV + text)
    with pytest.raises(InputError, match=sentence):
        recommend(path)


def test_words_share_the_parts_that_more_than_one_of_them_has() -> None:
    table, count = support.word_parts(("robot", "robots", "我", "zq"))
    assert table.shape[0] == FIRST + 4
    shared = set(table[FIRST]) & set(table[FIRST + 1]) - {0}
    assert len(shared) == count - 1 == len({"<ro", "rob", "obo", "bot", "<rob", "robo", "obot"})
    assert not table[[0, 1, FIRST + 2, FIRST + 3]].any()
