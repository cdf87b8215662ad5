"""BF16, which numpy has not: its two bytes an element are carried as they are, by a real engine too."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from toprope_shared import made_up
from toprope_shared.engines import Engine, find_engine
from toprope_shared.errors import LoadError, RequestError
from toprope_shared.manifest import golden_error_ppm
from toprope_shared.tensors import BF16, TensorSpec, check, datatype_of, numbers_of, to_bf16

EVERY = np.arange(1 << 16, dtype=np.uint16).view(BF16)
ONE = 0x3F80
SPECS = {name: TensorSpec(name, datatype, (-1, 2)) for name, datatype in (("x", "BF16"), ("y", "BF16"), ("z", "FP32"))}


def file() -> bytes:
    """Return the ONNX file of y = x, in bfloat16, and z = x, in float32."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT)]
    kinds = {"x": TensorProto.BFLOAT16, "y": TensorProto.BFLOAT16, "z": TensorProto.FLOAT}
    x, *outputs = (helper.make_tensor_value_info(name, kind, ["n", 2]) for name, kind in kinds.items())
    graph = helper.make_graph(nodes, "graph", [x], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def engine() -> Engine:
    return find_engine("onnxruntime")


def test_every_value_is_the_float_that_it_stands_for_and_comes_back() -> None:
    numbers = numbers_of(EVERY)
    np.testing.assert_array_equal(numbers, EVERY.view(ml_dtypes.bfloat16).astype(np.float32))
    assert numbers.dtype == np.float32
    known = ~np.isnan(numbers)
    assert (to_bf16(numbers)[known] == EVERY[known]).all()
    assert np.isnan(numbers_of(to_bf16(numbers)))[~known].all()


def test_floats_become_the_nearest_value_and_of_two_the_even_one() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    floats = np.concatenate([bits, (bits >> 16 << 16) | 0x8000]).view(np.float32)  # the second half lies between two
    floats = floats[~np.isnan(floats)]
    with np.errstate(over="ignore"):
        expected = floats.astype(ml_dtypes.bfloat16)
    assert (to_bf16(floats).view(np.uint16) == expected.view(np.uint16)).all()


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_shapes_stay(shape: tuple[int, ...]) -> None:
    array = to_bf16(np.ones(shape))
    assert (array.shape, array.dtype, datatype_of(array)) == (shape, BF16, "BF16")
    assert (array.view(np.uint16) == ONE).all()
    assert numbers_of(array).tolist() == np.ones(shape).tolist()
    assert numbers_of(to_bf16(np.ones((4, *shape))).T[..., ::2]).shape == (*shape[::-1], 2)


def test_arrays_of_ml_dtypes_are_taken_and_float16_is_something_else() -> None:
    check(SPECS["x"], np.ones((1, 2), ml_dtypes.bfloat16))
    with pytest.raises(RequestError, match="has datatype FP16, expected BF16"):
        check(SPECS["x"], np.ones((1, 2), np.float16))


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_onnxruntime_takes_and_gives_it(engine: Engine, rows: int) -> None:
    session = engine.open(file(), (SPECS["x"],), (SPECS["z"], SPECS["y"]))
    x = EVERY[: 2 * 7 * rows].reshape(7 * rows, 2)[::7]  # not contiguous
    for given in (x, x.view(ml_dtypes.bfloat16)):
        got = session.run({"x": given})
        assert list(got) == ["z", "y"]
        assert (got["y"].dtype, got["y"].shape) == (BF16, (rows, 2))
        assert got["y"].tobytes() == x.tobytes()
        np.testing.assert_array_equal(got["z"], numbers_of(x))
    session.close()


def test_its_bytes_are_never_taken_for_another_type(engine: Engine) -> None:
    wrong = TensorSpec("z", "BF16", (-1, 2)), TensorSpec("x", "FP16", (-1, 2)), TensorSpec("y", "FP32", (-1, 2))
    for spec in wrong:
        inputs, outputs = ((spec,), ()) if spec.name == "x" else ((SPECS["x"],), (spec,))
        with pytest.raises(
            LoadError, match=f"tensor '{spec.name}' is .* in the ONNX file and {spec.datatype} in the manifest"
        ):
            engine.open(file(), inputs, outputs)


def test_a_file_of_it_is_tried_out_and_compared_as_numbers(engine: Engine) -> None:
    opened = engine.open_as_is(file())  # type: ignore[attr-defined]
    assert [spec.datatype for spec in (*opened.inputs, *opened.outputs)] == ["BF16", "BF16", "FP32"]
    call = made_up.make_call(opened.inputs, opened.session.run, {})
    got = opened.session.run(call)["y"]
    assert golden_error_ppm(call["x"], got) == 0
    assert golden_error_ppm(to_bf16(np.array([1.0, 2.0])), to_bf16(np.array([1.0, 2.015625]))) == 7813
