"""Reads a MovieLens file of ratings, in any of the three forms in which they were published.

`ratings.csv` has a header with userId, movieId, rating and timestamp; `u.data` has these four, tab separated, without one;
`ratings.dat` has them with `::` between. Each mistake is a sentence with the file, the line and what was expected. The csv
module alone: the file is read once, line by line, and what passes the limits is refused before it fills the memory.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toprope_shared.errors import InputError

COLUMNS = ("userId", "movieId", "rating", "timestamp")
FORMS = (
    "ratings.csv (with the header userId,movieId,rating,timestamp), u.data (tab separated) or ratings.dat (`::` between)"
)
WORST, BEST = 0.5, 5.0
MAX_RATINGS = 2_000_000
MAX_TITLE = 120
_WHOLE = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,6})?")

Line = tuple[int, list[str]]
"""The number of a line, from 1, and its cells."""


@dataclass(frozen=True, slots=True)
class Ratings:
    """Who rated what, how and when, one a row, in the order of the file."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float32]
    times: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, numbers: NDArray[np.int64]) -> Ratings:
        """Return the rows of these numbers."""
        return Ratings(self.users[numbers], self.items[numbers], self.ratings[numbers], self.times[numbers])


def read(path: Path, *, limit: int = MAX_RATINGS) -> Ratings:
    """Read a file of ratings.

    Raises:
        InputError: it can't be read, is none of the three forms, is empty, or has more than `limit` ratings.
    """
    users, items, ratings, times = array("q"), array("q"), array("f"), array("q")
    for number, cells in _lines(path):
        if len(users) == limit:
            raise InputError(f"{path} has more than {limit:,} ratings; give a smaller set or a part of it")
        user, item, rating, when = cells
        users.append(_whole(path, number, "userId", user))
        items.append(_whole(path, number, "movieId", item))
        ratings.append(_rating(path, number, rating))
        times.append(_whole(path, number, "timestamp", when))
    if not users:
        raise InputError(f"{path} has no ratings; expected {FORMS}")
    return Ratings(
        np.frombuffer(users, np.int64),
        np.frombuffer(items, np.int64),
        np.frombuffer(ratings, np.float32),
        np.frombuffer(times, np.int64),
    )


def titles(ratings: Path) -> dict[int, str]:
    """Return the titles in the `movies.csv` beside a file of ratings, by movieId; none where there is no such file.

    Raises:
        InputError: the file is there and can't be read.
    """
    path = ratings.with_name("movies.csv")
    if not path.is_file():
        return {}
    named = _with_header(path, ("movieId", "title"))
    return {_whole(path, number, "movieId", item): " ".join(title.split())[:MAX_TITLE] for number, (item, title) in named}


def _lines(path: Path) -> Iterator[Line]:
    """Yield the four cells of every rating, in the order of `COLUMNS`."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the file in it: {FORMS}")
    match path.suffix:
        case ".csv":
            yield from _with_header(path, COLUMNS)
        case ".data":
            yield from _four(path, ((number, line.split("\t")) for number, line in _text(path)))
        case ".dat":
            yield from _four(path, ((number, line.split("::")) for number, line in _text(path)))
        case _:
            raise InputError(f"{path} is no file of ratings by its name; expected {FORMS}")


def _with_header(path: Path, wanted: tuple[str, ...]) -> Iterator[Line]:
    """Yield the wanted columns of a csv file, wherever in a line they stand."""
    reader = csv.reader((line for _, line in _text(path)), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise InputError(f"{path} is empty; expected a header with {','.join(wanted)} and rows below it")
        missing = [name for name in wanted if name not in header]
        if missing:
            raise InputError(
                f"{path}, line 1 has no column {', '.join(missing)}; expected a header with {','.join(wanted)}"
            )
        places = [header.index(name) for name in wanted]
        for cells in reader:
            if not cells:
                continue
            if len(cells) <= max(places):
                raise InputError(
                    f"{path}, line {reader.line_num} has {len(cells)} cells; expected {len(header)} as in the header"
                )
            yield reader.line_num, [cells[place] for place in places]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not csv: {error}") from error


def _four(path: Path, lines: Iterable[Line]) -> Iterator[Line]:
    for number, cells in lines:
        if cells == [""]:
            continue
        if len(cells) != len(COLUMNS):
            between = "tabs" if path.suffix == ".data" else "`::`"
            raise InputError(
                f"{path}, line {number} has {len(cells)} cells; expected {', '.join(COLUMNS)} with {between} between"
            )
        yield number, cells


def _text(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, from 1, without their ends."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise InputError(f"{path}, line {number} holds binary data; expected {FORMS}")
                yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text (near line {number + 1}: {error.reason}); expected {FORMS}") from error
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}; expected {FORMS}") from error


def _whole(path: Path, number: int, column: str, cell: str) -> int:
    cell = cell.strip()
    if not _WHOLE.fullmatch(cell):
        raise InputError(f"{path}, line {number}: {column} is {cell[:40]!r}; expected a whole number of at most 18 digits")
    return int(cell)


def _rating(path: Path, number: int, cell: str) -> float:
    cell = cell.strip()
    if not _NUMBER.fullmatch(cell) or not WORST <= float(cell) <= BEST:
        raise InputError(f"{path}, line {number}: rating is {cell[:40]!r}; expected a number from {WORST:g} to {BEST:g}")
    return float(cell)
