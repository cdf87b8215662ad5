"""Customer-service language: which topic a short message is about, in English or Chinese.

The sentences are chatterbot-corpus's: small talk with a bot, the Chinese part largely a machine's translation of the English
one. A topic is taken when both languages have at least 16 different opening questions for it; that leaves out botprofile,
food, gossip, greetings, history, humor, politics and trivia, and `conversations`, which is no topic. `tech_support` is English
alone, and its 1,050 conversations open with 10 different questions. Nothing is merged.

A row is one sentence, question or answer. All exchanges that open with the same question go to the same side, a sentence
that occurs twice is taken once, and one that stands in two topics is left out, each judged by its tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from toprope_shared.errors import InputError
from toprope_shared.manifest import Metric, Preprocessing, Privacy, Tokenizer
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_shared.text import FIRST, PAD, encode, tokens
from toprope_training.recipe import Data, Recipe, Rows, accuracy
from toprope_training.variants import VARIANTS

PACKAGE = "chatterbot_corpus"
LANGUAGES = ("english", "chinese")
TOPICS = ("ai", "emotion", "literature", "money", "movies", "psychology", "science", "sports")
LENGTH = 32
HELD_OUT = 0.25
WIDTH = 16
DROPOUT = 0.3
TEACHER_WIDTH = 32
TEACHER_DROPOUT = 0.5
PART_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence of the corpus; `group` is the question that its exchange opens with."""

    text: str
    topic: str
    language: str
    group: tuple[str, ...]


@cache
def messages() -> tuple[Message, ...]:
    """Return the corpus's different sentences.

    Raises:
        InputError: the package is not installed or has other files than it had.
    """
    first: dict[tuple[str, ...], Message] = {}
    topics: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for message in _read():
        key = tuple(tokens(message.text))
        if key:
            first.setdefault(key, message)
            topics[key].add(message.topic)
    return tuple(message for key, message in first.items() if len(topics[key]) == 1)


def _read() -> Iterator[Message]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for language in LANGUAGES:
        for topic in TOPICS:
            try:
                file = resources.files(PACKAGE) / "data" / language / f"{topic}.yml"
                conversations = yaml.load(file.read_text("utf-8"), loader)["conversations"]  # noqa: S506 - a safe loader
            except (ModuleNotFoundError, OSError, yaml.YAMLError, KeyError, TypeError) as error:
                raise InputError(
                    f"the corpus has no {language} {topic}: {error}; install chatterbot-corpus 1.3.3"
                ) from error
            for exchange in conversations:
                group = (language, *tokens(str(exchange[0])))
                yield from (Message(str(text), topic, language, group) for text in exchange)


@dataclass(frozen=True, slots=True)
class Known:
    """What `data` built: the tokenizer, and the held-out rows with the language of each."""

    tokenizer: Tokenizer
    holdout: Rows
    languages: tuple[str, ...]


class Support(Recipe):
    """The sum of a message's word vectors and a softmax: about 30,000 weights, nearly all of them the vectors.

    A sum and no masked average: dividing by the number of words fails in int8 on tflite-runtime when it runs, and it did not
    make the answers better. The vector of id 0 is held at zero, so padding adds nothing.
    """

    name = "support"
    description = "Which of eight topics a short message is about, in English or Chinese."
    inputs = (TensorSpec("tokens", "INT32", (-1, LENGTH)),)
    outputs = (TensorSpec("probs", "FP32", (-1, len(TOPICS))),)
    labels = TOPICS
    metric = Metric("accuracy", higher_is_better=True)
    # What leaves is the ids of words in the public corpus; a name, a number, any other word is id 1 before it leaves.
    privacy = Privacy.FULL
    accuracy_budget = 0.03
    required = 0.55
    variants = (*VARIANTS, "teacher-onnx-float32")
    epochs = 20
    batch_size = 32
    learning_rate = 0.008

    def __init__(self) -> None:
        self._known: Known | None = None

    def data(self, seed: int) -> Data:
        train, holdout = split(messages(), seed)
        tokenizer = Tokenizer(vocabulary(train), LENGTH)
        data = Data(_rows(train, tokenizer), _rows(holdout, tokenizer))
        self._known = Known(tokenizer, data.holdout, tuple(message.language for message in holdout))
        return data

    @property
    def known(self) -> Known:
        """What `data` built.

        Raises:
            InputError: `data` was not called.
        """
        if self._known is None:
            raise InputError("the vocabulary of support comes from its training rows; call `data` first")
        return self._known

    def build(self) -> Any:
        import keras

        ids = keras.Input((LENGTH,), dtype="int32", name="tokens")
        return keras.Model(ids, _bag(_vectors(ids, self.known.tokenizer, WIDTH), DROPOUT))

    def build_teacher(self) -> Any:
        import keras

        ids = keras.Input((LENGTH,), dtype="int32", name="tokens")
        vectors = _vectors(ids, self.known.tokenizer, TEACHER_WIDTH) + _parts(ids, self.known.tokenizer)
        return keras.Model(ids, _bag(vectors, TEACHER_DROPOUT))

    def loss(self) -> Any:
        return "sparse_categorical_crossentropy"

    def score(self, outputs: Tensors, targets: Array) -> float:
        return accuracy(outputs["probs"], targets)

    def preprocessing(self) -> tuple[Preprocessing, ...]:
        text = (
            "the message as ids: NFKC, casefolded, cut into words, numbers and single Chinese characters; "
            f"the first {LENGTH}, 0 behind the last one, 1 for what is not in the vocabulary"
        )
        return (Preprocessing("tokens", text, self.known.tokenizer),)

    def summary(self, model: Any) -> str:
        rows, languages = self.known.holdout, np.array(self.known.languages)
        scores = np.asarray(model(rows.inputs["tokens"], training=False))
        by_language = [
            f"{accuracy(scores[languages == language], rows.targets[languages == language]):.4f} in {language.capitalize()}"
            for language in LANGUAGES
        ]
        words = len(self.known.tokenizer.vocabulary)
        return f"accuracy on held-out messages: {', '.join(by_language)}; {words} words are known"


def split(every: Sequence[Message], seed: int) -> tuple[list[Message], list[Message]]:
    """Return training and held-out messages: of each topic and language a quarter of the groups, drawn with the seed."""
    rng = np.random.default_rng(seed)
    groups: dict[tuple[str, str], dict[tuple[str, ...], None]] = defaultdict(dict)
    for message in every:
        groups[message.topic, message.language].setdefault(message.group)
    chosen: set[tuple[str, ...]] = set()
    for place in sorted(groups):
        names = list(groups[place])
        chosen.update(names[number] for number in rng.permutation(len(names))[: round(len(names) * HELD_OUT)])
    held_out = [message.group in chosen for message in every]
    return (
        [message for message, out in zip(every, held_out, strict=True) if not out],
        [message for message, out in zip(every, held_out, strict=True) if out],
    )


def vocabulary(train: Sequence[Message]) -> tuple[str, ...]:
    """Return the tokens of these messages, the most frequent first."""
    counts = Counter(token for message in train for token in tokens(message.text))
    return tuple(sorted(counts, key=lambda token: (-counts[token], token)))


def _rows(some: Sequence[Message], tokenizer: Tokenizer) -> Rows:
    ids = np.stack([encode(message.text, tokenizer) for message in some])
    return Rows({"tokens": ids}, np.array([TOPICS.index(message.topic) for message in some], np.int64))


def _vectors(ids: Any, tokenizer: Tokenizer, width: int) -> Any:
    """Return the ids' vectors, [batch, length, width]; padding's is zero and stays zero."""
    import keras

    count = FIRST + len(tokenizer.vocabulary)
    alive = np.ones((count, 1), np.float32)
    alive[PAD] = 0
    layer = keras.layers.Embedding(count, width, embeddings_constraint=lambda weights: weights * alive)
    vectors = layer(ids)
    layer.embeddings.assign(layer.embeddings * alive)
    return vectors


def _parts(ids: Any, tokenizer: Tokenizer) -> Any:
    """Return the sums of the vectors of what each word is made of, [batch, length, width].

    Source: Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information".
    """
    from keras import layers, ops

    table, count = word_parts(tokenizer.vocabulary)
    vectors = layers.Embedding(count, TEACHER_WIDTH)(ops.take(table, ids, axis=0))
    alive = (table > PAD).astype(np.float32)[..., np.newaxis]
    return ops.sum(vectors * ops.take(alive, ids, axis=0), axis=2) * PART_WEIGHT


def word_parts(words: Sequence[str]) -> tuple[Array, int]:
    """Return the parts of each id's word, int32 [ids, most parts] padded with 0, and how many ids there are for parts.

    A part is three or four letters in a row, the ends marked; one that a single word has says nothing more than the word.
    """
    found = [_grams(word) for word in words]
    counts = Counter(part for parts in found for part in parts)
    numbers = {part: number for number, part in enumerate(sorted(p for p in counts if counts[p] > 1), 1)}
    rows = [sorted(numbers[part] for part in parts if part in numbers) for parts in found]
    table = np.full((FIRST + len(words), max(1, *(len(row) for row in rows))), PAD, np.int32)
    for place, row in enumerate(rows, FIRST):
        table[place, : len(row)] = row
    return table, 1 + len(numbers)


def _grams(word: str) -> set[str]:
    marked = f"<{word}>"
    return {marked[at : at + size] for size in (3, 4) for at in range(len(marked) - size + 1)} if len(word) > 1 else set()


def _bag(vectors: Any, dropout: float) -> Any:
    """Return the classes' probabilities by the sum of the vectors; order does not count.

    Source: Joulin et al. 2017, "Bag of Tricks for Efficient Text Classification".
    """
    from keras import layers

    # The average over all 32 places, padding too, is the sum up to a constant.
    x = layers.GlobalAveragePooling1D()(vectors)
    return layers.Dense(len(TOPICS), activation="softmax", name="probs")(layers.Dropout(dropout)(x))


RECIPE = Support()
