"""Damages model files: bits, lengths, offsets, pieces and shapes; the same seed always does the same damage."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import onnx
from tests.fakes import tryouts

HUGE = (0x7FFF_FFFF, 0xFFFF_FFFF, 0x4000_0000, 0x8000_0000, 0x0001_0000)
Damage = Callable[[bytes, random.Random], bytes]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Keep the beginning."""
    return data[: rng.randrange(1, len(data))]


def swap_words(data: bytes, rng: random.Random) -> bytes:
    """Let some aligned words change places: in a TFLite file most of them are offsets."""
    changed = bytearray(data)
    places = range(0, len(changed) - 3, 4)
    for _ in range(rng.randint(1, 4)):
        one, other = rng.sample(places, 2)
        changed[one : one + 4], changed[other : other + 4] = changed[other : other + 4], changed[one : one + 4]
    return bytes(changed)


def inflate_word(data: bytes, rng: random.Random) -> bytes:
    """Put a huge number into an aligned word: a length, an offset, an index."""
    place = rng.randrange(0, len(data) - 3, 4)
    return data[:place] + struct.pack("<I", rng.choice(HUGE)) + data[place + 4 :]


def splice(data: bytes, rng: random.Random) -> bytes:
    """Put a piece of the file over another place, or between."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randint(1, 256)]
    place = rng.randrange(len(data))
    return data[:place] + piece + data[place + rng.choice((0, len(piece))) :]


def inflate_tflite(_: bytes, rng: random.Random) -> bytes:
    """Give some tensors of the small network huge, negative or empty shapes, in a file that is well formed."""
    model = tryouts.conv_tflite_model()
    for tensor in rng.sample(model.subgraphs[0].tensors, rng.randint(1, 3)):
        shape = list(tensor.shape)
        shape[rng.randrange(len(shape))] = rng.choice((2**31 - 1, 2**20, 46341, 0, -1, -(2**31)))
        tensor.shape = shape
    return tryouts.packed(model)


def inflate_onnx(data: bytes, rng: random.Random) -> bytes:
    """Give some constants, inputs or outputs huge, negative or empty shapes, in a file that is well formed."""
    model = onnx.load_from_string(data)
    values = (*model.graph.input, *model.graph.output)
    for _ in range(rng.randint(1, 3)):
        size = rng.choice((2**62, 2**40, 2**31, 2**20, 0, -1, -(2**62)))
        if rng.random() < 0.7:
            constant = rng.choice(model.graph.initializer)
            constant.dims[rng.randrange(len(constant.dims))] = size
        else:
            rng.choice(rng.choice(values).type.tensor_type.shape.dim).dim_value = size
    return bytes(model.SerializeToString())


BYTEWISE: tuple[Damage, ...] = (flip_bits, cut, swap_words, inflate_word, splice)
TFLITE: tuple[Damage, ...] = (*BYTEWISE, inflate_tflite)
ONNX: tuple[Damage, ...] = (*BYTEWISE, inflate_onnx)


def mutants(data: bytes, damages: tuple[Damage, ...], count: int) -> list[tuple[str, bytes]]:
    """Return so many damaged files with a name each; none is the file itself."""
    found: list[tuple[str, bytes]] = []
    seed = 0
    while len(found) < count:
        damage = damages[seed % len(damages)]
        changed = damage(data, random.Random(seed))
        if changed != data:
            found.append((f"{damage.__name__} {seed}", changed))
        seed += 1
    return found
