"""ONNX's own backend suite asked over HTTP: every case that bare onnxruntime passes must pass through our door.

A case is a model, mostly of one operator, with inputs and expected outputs (`onnx.backend.test`). onnxruntime runs it first
without us; what passes there is sent to a real server over a real socket, as raw tensors and as JSON, and has to come back the
same to the bit.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as nodes
import onnxruntime as ort
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner
from tests.conformance.wire import Array, Asker, NoFormError, RefusedError, datatype_of, to_json
from tests.shared.serving.conftest import Held, Shelf, make_manifest

from toprope_shared.engines import find_engine
from toprope_shared.tensors import TensorSpec

# Chance decides their outputs: two calls of one session differ, so only type and shape are held.
DRAWN = frozenset({"Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"})
LIGHT = ("simple", "pytorch-converted", "pytorch-operator")
FORMS = ("binary", "json")
# How far one session's own answers lie apart: its sums go by where in memory an input lies.
RTOL, ATOL = 1e-5, 1e-6


@dataclass(frozen=True)
class Case:
    """One case of the suite.

    Attributes:
        name: the suite's own.
        model: with the inputs in the samples' order.
        samples: inputs and expected outputs of each call.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    name: str
    model: onnx.ModelProto
    samples: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float

    @property
    def data(self) -> bytes:
        """The model as a file's bytes."""
        return bytes(self.model.SerializeToString())

    def is_drawn(self) -> bool:
        """Say whether chance decides the outputs."""
        return any(node.op_type in DRAWN for node in self.model.graph.node)


@dataclass
class Tally:
    """What became of the cases: how many, and why some were not asked."""

    asked: int = 0
    bare: int = 0
    passed: Counter[str] = field(default_factory=Counter)
    close: Counter[str] = field(default_factory=Counter)
    not_sent: dict[str, Counter[str]] = field(default_factory=lambda: {form: Counter() for form in FORMS})
    failures: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the counts as sentences."""
        said = [f"{self.asked} cases, of which bare onnxruntime passes {self.bare}"]
        for form in FORMS:
            why = "; ".join(f"{count} {reason}" for reason, count in self.not_sent[form].most_common())
            said.append(
                f"{form}: {self.passed[form]} pass through us, {self.close[form]} of them with another last digit; "
                f"{self.not_sent[form].total()} have no form ({why})"
            )
        return said


def every_node_case() -> list[Case]:
    """Return the whole suite of operators; making it takes some seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it overflows on purpose when it makes its values
        return [_case(one) for one in load_model_tests(kind="node")]


def some_node_cases(operators: Iterable[str]) -> list[Case]:
    """Return the cases of some of `node_modules`; a module makes its own when it is imported for the first time."""
    before = len(nodes._NodeTestCases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in operators:
            importlib.import_module(f"{nodes.__name__}.{name}")
    return [_case(one) for one in nodes._NodeTestCases[before:]]


def node_modules() -> list[str]:
    """Return the modules of the suite, about one an operator."""
    return sorted(module.name for module in pkgutil.iter_modules(nodes.__path__) if not module.ispkg)


def light_cases() -> list[Case]:
    """Return the small models that lie in the package as files: simple graphs, and layers that PyTorch exported."""
    return [_case(one) for kind in LIGHT for one in load_model_tests(kind=kind)]


def _case(one: Any) -> Case:
    if one.model is not None:
        samples = [(_arrays(inputs), _arrays(outputs)) for inputs, outputs in one.data_sets]
        return Case(one.name, one.model, samples, one.rtol, one.atol)
    folder = Path(one.model_dir)
    model = onnx.load(folder / "model.onnx")
    samples = [
        (_saved(place, "input", model.graph.input), _saved(place, "output", model.graph.output))
        for place in sorted(folder.glob("test_data_set_*"))
    ]
    return Case(one.name, model, samples, one.rtol, one.atol)


def _arrays(values: Sequence[Any]) -> list[Any]:
    """Return values with every tensor as an array; sequences and missing values stay as they are."""
    return [
        onnx.numpy_helper.to_array(value)
        if isinstance(value, onnx.TensorProto)
        else value
        if value is None or isinstance(value, list)
        else np.asarray(value)
        for value in values
    ]


def _saved(folder: Path, kind: str, declared: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    """Return the values that a folder keeps for the inputs or the outputs."""
    values: list[Any] = []
    for number in range(len(list(folder.glob(f"{kind}_*.pb")))):
        data = (folder / f"{kind}_{number}.pb").read_bytes()
        if declared[number].type.HasField("sequence_type"):
            values.append(onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data)))
        else:
            values.append(onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data)))
    return values


def bare_session(case: Case) -> ort.InferenceSession:
    """Open a case's model without us; with one thread, as sums differ in their last bit by the number of threads."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(case.data, options, providers=["CPUExecutionProvider"])


def bare(case: Case) -> list[dict[str, Any]] | None:
    """Return what onnxruntime itself says for each sample, by output name; None where it does not pass the case."""
    try:
        session = bare_session(case)
        names = [one.name for one in session.get_outputs()]
        said = []
        for inputs, outputs in case.samples:
            values = session.run(None, named(session, inputs))
            if not case.is_drawn():
                Runner.assert_similar_outputs(outputs, values, case.rtol, case.atol)
            said.append(dict(zip(names, values, strict=True)))
    except Exception:  # the binding raises a dozen unrelated classes; whatever it is, this case is beyond the engine
        return None
    return said


def named(session: ort.InferenceSession, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return a sample's inputs by the names that the session wants."""
    wanted = {one.name for one in session.get_inputs()}
    # A file may list constants among its inputs; the samples come for the first of them.
    return dict(zip([one.name for one in session.get_inputs()], inputs, strict=False)) if wanted else {}


def specs_of(case: Case, session: ort.InferenceSession) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return a model's inputs and outputs as a manifest says them.

    Raises:
        NoFormError: one is no tensor, or of a type without a name in the protocol.
    """

    def spec(one: Any) -> TensorSpec:
        if not one.type.startswith("tensor("):
            raise NoFormError(one.type.partition("(")[0])
        array = np.empty(0, _NUMPY.get(one.type, np.complex64))
        return TensorSpec(one.name, datatype_of(array), tuple(size if isinstance(size, int) else -1 for size in one.shape))

    return [spec(one) for one in session.get_inputs()], [spec(one) for one in session.get_outputs()]


_NUMPY: Mapping[str, Any] = {
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(string)": np.object_,
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Suite:
    """Puts one case after the other on a shelf that is being served, and asks for it.

    Args:
        shelf: what the server answers from.
        asker: of that server.
    """

    def __init__(self, shelf: Shelf, asker: Asker) -> None:
        self._shelf = shelf
        self._asker = asker
        self._engine = find_engine("onnxruntime")
        self.tally = Tally()

    def ask(self, case: Case) -> None:
        """Ask for one case in every form and count what comes of it."""
        self.tally.asked += 1
        said = bare(case)
        if said is None:
            return
        self.tally.bare += 1
        session = bare_session(case)
        try:
            inputs, outputs = specs_of(case, session)
        except NoFormError as error:
            for form in FORMS:
                self.tally.not_sent[form][str(error)] += 1
            return
        manifest = make_manifest(case.name, inputs, outputs)
        opened = self._engine.open(case.data, manifest.inputs, manifest.outputs)
        self._shelf.models_[:] = [Held(manifest, opened.run)]
        calls = [(named(session, sample), expected) for (sample, _), expected in zip(case.samples, said, strict=True)]
        for form in FORMS:
            self._ask(case, form, calls)

    def _ask(self, case: Case, form: str, calls: list[tuple[dict[str, Array], dict[str, Array]]]) -> None:
        same = True
        try:
            for inputs, expected in calls:
                if form == "json":
                    for array in (*inputs.values(), *expected.values()):
                        to_json(array)
                given = self._asker.infer(case.name, inputs, list(expected), binary=form == "binary")
                hold(given, expected, drawn=case.is_drawn())
                same &= case.is_drawn() or all(alike(given[name], array) for name, array in expected.items())
        except NoFormError as error:
            self.tally.not_sent[form][str(error)] += 1
        except (RefusedError, AssertionError) as error:
            self.tally.failures.append(f"{form} {case.name}: {error}")
        else:
            self.tally.passed[form] += 1
            self.tally.close[form] += not same


def hold(given: Mapping[str, Array], expected: Mapping[str, Array], *, drawn: bool) -> None:
    """Hold an answer against the bare engine's.

    Args:
        given: by output name.
        expected: by output name.
        drawn: chance decides the values.

    Raises:
        AssertionError: names, types, shapes or values differ.
    """
    assert list(given) == list(expected), f"outputs {list(given)}, expected {list(expected)}"
    for name, array in expected.items():
        got = given[name]
        assert (got.dtype, got.shape) == (array.dtype, array.shape), f"{name}: {got.dtype} {got.shape}, not {array.shape}"
        if not drawn and not alike(got, array):
            assert array.dtype.kind == "f", f"{name}: {got} is not {array}"
            np.testing.assert_allclose(got, array, RTOL, ATOL, err_msg=name)


def alike(got: Array, array: Array) -> bool:
    """Say whether two arrays are the same to the bit; NaN is NaN."""
    if array.dtype == np.object_:
        return bool(got.tolist() == array.tolist())
    return got.tobytes() == array.tobytes() or np.array_equal(got, array, equal_nan=array.dtype.kind == "f")
