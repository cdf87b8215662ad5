"""Recommends films: ten that a user has not rated yet and may like, by factorisation of who rated what.

With `--data` it learns from a MovieLens file; without, from ratings that `generate` makes up: 600 users and 400 items with
hidden tastes and a power law of popularity. Those show that the machinery works and say nothing about people.

One vector a user and one an item: their product and the item's bias are the affinity. It is learned as a softmax over all
items against the films that a user liked (4 or better), which is what top ten lists are judged by. Source: Hu, Koren and
Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets", for the idea; Liang et al. 2018, "Variational
Autoencoders for Collaborative Filtering", for the multinomial likelihood.

The graph holds what each user has rated, one byte a pair, and never answers with it. So users times items is limited.
The holdout is by time: of each user with at least five likes the last one; what he rated after it is left out altogether.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toprope_shared.errors import InputError
from toprope_shared.manifest import Metric, Preprocessing, Privacy
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_training import ratings
from toprope_training.ratings import Ratings
from toprope_training.recipe import Data, Progress, Recipe, Rows, hit_rate

USERS = 600
ITEMS = 400
TASTES = 6
TYPICAL_RATINGS = 66
TOP = 10
LIKED = 4.0
MIN_LIKED = 5
MAX_ITEMS = 100_000
# One byte each in every variant.
MAX_PAIRS = 32_000_000
FACTORS = 32
DECAY = 1e-5
DROPOUT = 0.5
# Of the made-up ratings, where seeds 0 to 4 gave 0.30 to 0.36 and popularity alone 0.13 to 0.17.
REQUIRED = 0.25


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What `data` found: ids in ascending order, by index, and what each user has rated before his held-out film."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    rated: NDArray[np.bool_]
    popularity: float


class Recommender(Recipe):
    """User and item vectors of 32 numbers, a bias an item, and the ten best that the user has not rated."""

    name = "recommender"
    description = "Ten films that a user has not rated and may like."
    inputs = (TensorSpec("user", "INT32", (-1, 1)),)
    outputs = (TensorSpec("scores", "FP32", (-1, TOP)), TensorSpec("items", "INT32", (-1, TOP)))
    compared = ("scores",)
    metric = Metric("hit_rate_at_10", higher_is_better=True)
    # What leaves is a user's number; what he likes stands in the released model, here and in the cloud.
    privacy = Privacy.FULL
    accuracy_budget = 0.03
    takes = "a MovieLens file of ratings: " + ratings.FORMS
    epochs = 60
    batch_size = 64
    learning_rate = 0.01

    def __init__(self) -> None:
        self._known: Catalogue | None = None

    @property
    def required(self) -> float | None:  # type: ignore[override]
        """The worst hit rate: of the made-up ratings; what a file allows is not known beforehand."""
        return REQUIRED if self.source is None else None

    def data(self, seed: int) -> Data:
        found = _latest(generate(seed) if self.source is None else ratings.read(self.source))
        users, user = np.unique(found.users, return_inverse=True)
        items, item = np.unique(found.items, return_inverse=True)
        _check_size(len(users), len(items))
        last = _held_out(user, found)
        if not len(last):
            raise InputError(
                f"no user has {MIN_LIKED} ratings of {LIKED:g} or better, so nothing can be held out; give more"
            )
        before = np.arange(len(found)) < _ends(user, last)[user]
        rated = np.zeros((len(users), len(items)), np.bool_)
        rated[user[before], item[before]] = True
        every = Rows({"user": user.astype(np.int32)[:, np.newaxis]}, _targets(item, found))
        data = Data(every.take(np.flatnonzero(before)), every.take(last))
        self._known = Catalogue(users, items, rated, _popular_hits(data, rated))
        named = {} if self.source is None else ratings.titles(self.source)
        self.labels = tuple(f"{number} {named.get(number, '')}".strip() for number in items.tolist())
        return data

    def build(self) -> Any:
        import keras
        from keras import layers, ops

        rated = self.known.rated
        decay = keras.regularizers.L2(DECAY)
        user = keras.Input((1,), dtype="int32", name="user")
        x = layers.Embedding(len(rated), FACTORS, embeddings_regularizer=decay, name="users")(user)
        x = layers.Dropout(DROPOUT)(layers.Reshape((FACTORS,))(x))
        affinity = layers.Dense(rated.shape[1], kernel_regularizer=decay, name="affinity")(x)
        free = ops.reshape(ops.take(~rated, user, axis=0), (-1, rated.shape[1]))
        # Zero is the floor: `train` moves the affinities so that whatever may come into a top ten stands above it.
        scores, items = ops.top_k(ops.where(free, ops.relu(affinity), 0.0), TOP)
        return keras.Model(user, [scores, items])

    def train(self, model: Any, rows: Rows, progress: Progress) -> None:
        """Fit the affinities: one row a user, the films that he liked in equal shares as its target."""
        import keras

        liked = _liked(rows, self.known.rated.shape)
        user = np.arange(len(liked), dtype=np.int32)[:, np.newaxis]
        inner = keras.Model(model.input, model.get_layer("affinity").output, name=model.name)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        self.fit(inner, Rows({"user": user}, liked), liked, loss, progress)
        affinity = inner.predict(user, batch_size=256, verbose=0)
        layer = model.get_layer("affinity")
        layer.bias.assign(layer.bias - _floor(affinity, self.known.rated))

    def score(self, outputs: Tensors, targets: Array) -> float:
        return hit_rate(outputs["items"], targets[:, 0])

    @property
    def known(self) -> Catalogue:
        """What `data` found.

        Raises:
            InputError: `data` was not called.
        """
        if self._known is None:
            raise InputError("the recommender knows its users and films by its data; call `data` first")
        return self._known

    def preprocessing(self) -> tuple[Preprocessing, ...]:
        users = self.known.users
        text = (
            f"the position, from 0, of the userId in the ascending list of the {len(users)} userIds of the ratings: "
            f"{users[0]} is 0 and {users[-1]} is {len(users) - 1}; another user can't be asked about. "
            "The output items are positions, from 0, in the labels, which begin with the movieId"
        )
        return (Preprocessing("user", text),)

    def weights(self, model: Any) -> dict[str, Array]:
        """Return the weights, and the userIds by index as `users`."""
        return super().weights(model) | {"users": self.known.users}

    def summary(self, model: Any) -> str:
        users, items = self.known.rated.shape
        return (
            f"{users} users and {items} items; the most popular items that a user has not rated give a hit rate of "
            f"{self.known.popularity:.4f}"
        )


def generate(seed: int) -> Ratings:
    """Return made-up ratings: about 40,000 by 600 users of 400 items, ids from 1.

    User and item each have a position in a space of six tastes. Who rates what follows the item's popularity (a power law
    of its rank) and, more weakly, the taste; the rating follows the taste and noise.
    """
    rng = np.random.default_rng(seed)
    user, item = (rng.normal(size=(count, TASTES)) for count in (USERS, ITEMS))
    taste = user @ item.T / np.sqrt(TASTES)
    popularity = rng.permutation(1 / np.arange(5, ITEMS + 5) ** 0.8)
    chance = popularity * np.exp(1.2 * taste)
    counts = np.clip(rng.lognormal(np.log(TYPICAL_RATINGS) - 0.25, 0.7, USERS), 20, ITEMS // 2).astype(int)
    rated = [rng.choice(ITEMS, count, replace=False, p=row / row.sum()) for count, row in zip(counts, chance, strict=True)]
    users, items = np.repeat(np.arange(USERS), counts), np.concatenate(rated)
    opinion = 3.5 + 0.8 * taste[users, items] + rng.normal(0, 0.6, len(users))
    stars = np.clip(np.round(opinion * 2) / 2, ratings.WORST, ratings.BEST)
    times = rng.permutation(len(users)) + 1_000_000_000
    return Ratings(users + 1, items + 1, stars.astype(np.float32), times)


def _latest(found: Ratings) -> Ratings:
    """Return the ratings by time, and of a film that a user rated twice the later."""
    ordered = found.take(np.argsort(found.times, kind="stable"))
    order = np.lexsort((np.arange(len(ordered)), ordered.items, ordered.users))
    users, items = ordered.users[order], ordered.items[order]
    last = np.append((users[1:] != users[:-1]) | (items[1:] != items[:-1]), True)
    return ordered.take(np.sort(order[last]))


def _check_size(users: int, items: int) -> None:
    if items <= TOP:
        raise InputError(f"the ratings name {items} films; expected more than {TOP}")
    if items > MAX_ITEMS:
        raise InputError(f"the ratings name {items:,} films; at most {MAX_ITEMS:,} can be handled, so leave the rarest out")
    if users * items > MAX_PAIRS:
        raise InputError(
            f"{users:,} users times {items:,} films is more than {MAX_PAIRS:,}, and the model holds a byte for each pair; "
            "leave out the rarest films or some of the users"
        )


def _held_out(user: Array, found: Ratings) -> NDArray[np.int64]:
    """Return, for each user with enough likes, the row of the last one."""
    likes = np.flatnonzero(found.ratings >= LIKED)
    counts = np.bincount(user[likes], minlength=int(user.max()) + 1)
    last: NDArray[np.int64] = np.zeros(len(counts), np.int64)
    last[user[likes]] = likes  # ascending, so the last one stays
    return last[counts >= MIN_LIKED]


def _ends(user: Array, last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, by user, the row from which on his ratings are left out."""
    ends = np.full(int(user.max()) + 1, len(user))
    ends[user[last]] = last
    return ends


def _targets(item: Array, found: Ratings) -> NDArray[np.int64]:
    """Return item and half stars, int64 [n, 2]."""
    targets: NDArray[np.int64] = np.stack([item, np.round(found.ratings * 2)], axis=1).astype(np.int64)
    return targets


def _liked(rows: Rows, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return each user's likes in equal shares, float32 [users, items]; who liked nothing gets what he rated."""
    user, item, half_stars = rows.inputs["user"][:, 0], rows.targets[:, 0], rows.targets[:, 1]
    likes = half_stars >= 2 * LIKED
    nothing = np.bincount(user[likes], minlength=shape[0]) == 0
    take = likes | nothing[user]
    shares: NDArray[np.float32] = np.zeros(shape, np.float32)
    shares[user[take], item[take]] = 1
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    return shares


def _floor(affinity: Array, rated: Array) -> float:
    """Return the lowest affinity that stands in the first three dozen of a user's free items."""
    deep = min(3 * TOP, affinity.shape[1] - 1)
    free = np.where(rated, -np.inf, affinity)
    lowest = -np.partition(-free, deep, axis=1)[:, deep]
    return float(lowest[np.isfinite(lowest)].min(initial=float(affinity.max())))


def _popular_hits(data: Data, rated: Array) -> float:
    """Return the hit rate of the most liked items that each user has not rated."""
    likes = np.bincount(data.train.targets[data.train.targets[:, 1] >= 2 * LIKED, 0], minlength=rated.shape[1])
    user = data.holdout.inputs["user"][:, 0]
    best = np.argsort(-np.where(rated[user], -1, likes), axis=1, kind="stable")[:, :TOP]
    return hit_rate(best, data.holdout.targets[:, 0])


RECIPE = Recommender()
