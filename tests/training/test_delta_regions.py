"""Tensors are found where they lie in real TFLite and ONNX files, and deltas between such files make the very file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.fakes.tensor_files import dense_layers, tflite

from toprope_shared.deltas import Region, apply, worth_offering
from toprope_shared.digest import sha256_file
from toprope_shared.errors import InputError, IntegrityError
from toprope_training.delta_regions import make_delta, regions

RNG = np.random.default_rng(11)
TENSORS: dict[str, npt.NDArray[Any]] = {
    "kernel": RNG.integers(-100, 100, (30, 40)).astype(np.int8),
    "bias": RNG.integers(-9000, 9000, 30).astype(np.int32),
    "half": RNG.normal(size=(20, 20)).astype(np.float16),
    "whole": RNG.normal(size=(20, 30)).astype(np.float32),
}


def rebuilt(folder: Path, base: bytes, target: bytes) -> bytes:
    """Hold that a delta between two files makes the second; return the delta."""
    for name, data in (("base", base), ("target", target)):
        (folder / name).write_bytes(data)
    delta = make_delta(folder / "base", folder / "target")
    (folder / "delta").write_bytes(delta)
    apply(folder / "base", folder / "delta", folder / "out", target=sha256_file(folder / "target"))
    assert (folder / "out").read_bytes() == target
    return delta


def held(data: bytes, found: tuple[Region, ...]) -> dict[str, bytes]:
    """Return each region's bytes by its name, the longest of a name."""
    by_size = sorted(found, key=lambda one: one.length)
    return {one.name: data[one.start : one.start + one.length] for one in by_size}


def tuned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return weights as a gentle fine-tune leaves them."""
    noise = RNG.normal(size=values.shape)
    new: npt.NDArray[Any] = values + (noise * 1e-4 if values.dtype.kind == "f" else noise.round())
    return new.astype(values.dtype)


def test_every_constant_of_a_tflite_file_is_found() -> None:
    data = tflite(TENSORS)
    found = regions(data)
    assert held(data, found) == {name: values.tobytes() for name, values in TENSORS.items()}
    assert {one.name: (one.width, one.shape) for one in found} == {
        name: (values.itemsize, values.shape) for name, values in TENSORS.items()
    }


def test_scales_of_a_tflite_file_are_found_too() -> None:
    data = tflite({"kernel": TENSORS["kernel"]}, scales={"kernel": [0.5, 0.25]})
    scales = [one for one in regions(data) if one.width == 4]
    assert [data[one.start : one.start + one.length] for one in scales] == [np.array([0.5, 0.25], "<f4").tobytes()]


def test_every_initializer_of_an_onnx_file_is_found_in_bodies_and_attributes_too() -> None:
    inner = helper.make_graph([], "body", [], [], [numpy_helper.from_array(TENSORS["half"], "inner")])
    constant = numpy_helper.from_array(TENSORS["bias"], "constant")
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=inner),
        helper.make_node("Constant", [], ["z"], value=constant),
    ]
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    outer = numpy_helper.from_array(TENSORS["kernel"], "outer")
    data = helper.make_model(helper.make_graph(nodes, "g", [], [], [outer, typed])).SerializeToString()
    assert held(data, regions(data)) == {
        "inner": TENSORS["half"].tobytes(),
        "constant": TENSORS["bias"].tobytes(),
        "outer": TENSORS["kernel"].tobytes(),
        "typed": np.array([1, 2, 3], "<f4").tobytes(),
    }
    assert {one.name: one.width for one in regions(data)} == {"inner": 2, "constant": 4, "outer": 1, "typed": 4}


def test_a_fine_tuned_tflite_file_is_a_fraction(tmp_path: Path) -> None:
    new = {name: tuned(values) for name, values in TENSORS.items()}
    base, target = tflite(TENSORS), tflite(new)
    delta = rebuilt(tmp_path, base, target)
    assert worth_offering(len(delta), len(target))


@pytest.mark.parametrize("text", ["b", "a model, with much to say " * 40])
def test_a_tflite_file_whose_buffers_moved_is_a_fraction_too(tmp_path: Path, text: str) -> None:
    new = {name: tuned(values) for name, values in TENSORS.items()}
    base, target = tflite(TENSORS), tflite(new, description=text)
    delta = rebuilt(tmp_path, base, target)
    assert worth_offering(len(delta), len(target))


def test_a_tflite_file_with_other_scales_tensors_and_shapes_comes_back(tmp_path: Path) -> None:
    new = {
        "first": TENSORS["whole"],
        "kernel": tuned(TENSORS["kernel"]),
        "half": TENSORS["half"][:7],
        "bias": TENSORS["bias"],
    }
    base = tflite(TENSORS, scales={"kernel": [0.1] * 30})
    rebuilt(tmp_path, base, tflite(new, scales={"kernel": [0.11] * 30, "bias": [1.0]}))


def test_a_fine_tuned_onnx_file_is_a_fraction(tmp_path: Path) -> None:
    layers = [RNG.normal(size=(30, 50)).astype(np.float32), RNG.normal(size=(50, 10)).astype(np.float32)]
    base, target = dense_layers(layers), dense_layers([tuned(one) for one in layers], note="learnt on")
    delta = rebuilt(tmp_path, base, target)
    assert worth_offering(len(delta), len(target))


def test_an_onnx_file_with_a_new_head_takes_little_more_than_the_head(tmp_path: Path) -> None:
    body, head = RNG.normal(size=(60, 80)).astype(np.float32), RNG.normal(size=(80, 3)).astype(np.float32)
    delta = rebuilt(tmp_path, dense_layers([body, head]), dense_layers([body, RNG.normal(size=(80, 4)).astype(np.float32)]))
    assert len(delta) < 80 * 4 * 4 + 300


def test_from_onnx_to_tflite_comes_back(tmp_path: Path) -> None:
    rebuilt(tmp_path, dense_layers([TENSORS["whole"]]), tflite(TENSORS))


def test_files_of_other_kinds_come_back(tmp_path: Path) -> None:
    rebuilt(tmp_path, b"some text, again and again " * 50, b"another text, again and again " * 50)


def test_a_delta_does_nothing_to_another_file_of_the_same_kind(tmp_path: Path) -> None:
    rebuilt(tmp_path, tflite(TENSORS), tflite({"kernel": TENSORS["kernel"]}))
    before = sha256_file(tmp_path / "out")
    with pytest.raises(IntegrityError, match="needs the base"):
        apply(tmp_path / "target", tmp_path / "delta", tmp_path / "out", target=before)
    assert sha256_file(tmp_path / "out") == before


@pytest.mark.parametrize("cut", [9, 100, 1000])
def test_a_cut_tflite_file_is_named(cut: int) -> None:
    with pytest.raises(InputError, match="cut short or altered"):
        regions(tflite(TENSORS)[:cut])


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"plain text, no model", bytes(99)]
)
def test_what_is_no_model_has_no_tensors(data: bytes) -> None:
    assert regions(data) == ()


def test_graphs_nested_without_end_have_no_tensors() -> None:
    data = b""
    for _ in range(60):  # attribute.g { node { attribute
        for field in (6, 1, 5):
            data = bytes([field << 3 | 2]) + onnx_varint(len(data)) + data
    data = b"\x3a" + onnx_varint(len(data)) + data
    assert regions(data) == ()


def onnx_varint(number: int) -> bytes:
    """Return a protobuf varint."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def test_the_walk_agrees_with_onnx_itself() -> None:
    data = dense_layers([TENSORS["whole"]])
    model = onnx.load_model_from_string(data)
    (found,) = regions(data)
    assert data[found.start : found.start + found.length] == model.graph.initializer[0].raw_data
