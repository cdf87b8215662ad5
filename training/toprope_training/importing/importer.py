"""Makes a release of a model that someone else made: read in a child process, tried on examples, through the same gates.

What the file is decides what can be made of it: a Keras model or SavedModel is converted to TFLite and ONNX, an ONNX file
is quantized, a TFLite file stays what it is; PyTorch and scikit-learn models become ONNX first. A quantized variant that
does not hold is left out and named; the model itself must hold. This process opens none of the files with an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from toprope_shared.clock import Clock
from toprope_shared.errors import InputError
from toprope_shared.manifest import REFERENCE, TEACHER, Needs, Slug
from toprope_shared.tensors import TensorSpec
from toprope_training import gates, layout, provenance, release, scoring, variants
from toprope_training.assembly import Assembly, Order
from toprope_training.bundle import Bundle
from toprope_training.children import Children, StepError
from toprope_training.importing.formats import Kind, detect
from toprope_training.importing.judging import ENGINE_NAMES, Wish, judge
from toprope_training.importing.reading import Export, Exported, Found, Read
from toprope_training.recipe import Progress
from toprope_training.steps import Converted
from toprope_training.terms import Terms
from toprope_training.workshop import workshop

READ_S = 900.0
_EXPORTED = ".exported.onnx"
_READERS = {
    Kind.KERAS: "read tensorflow",
    Kind.SAVED_MODEL: "read tensorflow",
    Kind.ONNX: "read onnx",
    Kind.TFLITE: "read tflite",
}
_EXPORTERS = {Kind.TORCH: "export torch", Kind.SKLEARN: "export sklearn"}


def import_model(
    file: Path,
    out: Path,
    wish: Wish,
    *,
    force: bool = False,
    bases: Sequence[Path] = (),
    release_counter: int | None = None,
    progress: Progress = release.quiet,
    clock: Clock | None = None,
) -> tuple[Bundle, tuple[str, ...]]:
    """Make a release of a model's file; return its bundle and what was left out, each with the reason.

    Args:
        file: the model's file, or a SavedModel's folder.
        out: the bundle directory to make.
        wish: what the owner says.
        force: replace a bundle that stands at `out`.
        bases: bundles of earlier releases of the model, from which deltas are made.
        release_counter: grows with every release of a model; None is the seconds since 1970.
        progress: told a sentence for each step.
        clock: tells the time of the release.

    Raises:
        InputError: the file is nothing that can be imported, or the owner's words do not fit it.
        GateError: the model itself did not pass.
        TopropeError: a child process failed; the text names its log.
    """
    order = release.make_order(wish.version, release_counter, clock)
    _check(wish)
    sources = {REFERENCE: _source(file, wish)}
    if wish.cloud is not None:
        sources[TEACHER] = _source(wish.cloud, wish)
    out = out.resolve()
    if any(out.is_relative_to(source.path) for source in sources.values()):
        raise InputError(f"{out} lies within the model's own folder; choose another --out")
    kept_log = release.failed_log(out)
    earlier = release.open_bases(bases, wish.name)
    with workshop(out, force=force) as folder:
        making = _Import(wish, folder, Children(folder / layout.LOG, kept_log, progress), earlier)
        found = {kind: making.read(kind, source) for kind, source in sources.items()}
        receipts = making.release(found, sources, order)
        Bundle.open(folder)
    kept_log.unlink(missing_ok=True)
    return Bundle.open(out), tuple(f"{name}: {why}" for name, why in receipts.left_out.items())


@dataclass(frozen=True, slots=True)
class _Source:
    """A model's file and what it is."""

    path: Path
    kind: Kind


def _check(wish: Wish) -> None:
    try:
        msgspec.convert(wish.name, Slug)
    except msgspec.ValidationError as error:
        raise InputError(f"the name {wish.name!r} does not fit: {error}; use letters, digits, - and _") from error
    if wish.metric is not None and wish.metric not in scoring.METRICS:
        raise InputError(f"there is no metric {wish.metric!r}; choose among {', '.join(scoring.METRICS)}")
    unknown = sorted(set(wish.engines) - set(ENGINE_NAMES))
    if unknown:
        raise InputError(f"there is no engine {unknown[0]!r}; choose among {', '.join(ENGINE_NAMES)}")
    if any(size < 1 for shape in wish.shapes.values() for size in shape):
        raise InputError("--shape takes sizes from 1 on")
    if wish.examples is not None and not wish.examples.is_file():
        raise InputError(f"there is no examples file {wish.examples}")


def _source(path: Path, wish: Wish) -> _Source:
    kind = detect(path)
    path = path.resolve()
    if kind is Kind.SKLEARN and not wish.trust_pickle:
        raise InputError(
            f"{path} is a pickle, and reading a pickle runs the code in it; if you made it or trust who did, "
            "say so with --trust-pickle"
        )
    return _Source(path, kind)


@dataclass(frozen=True, slots=True)
class _Import:
    """The steps of one import in one folder."""

    wish: Wish
    folder: Path
    children: Children
    bases: Sequence[Bundle]

    def read(self, reference: str, source: _Source) -> tuple[Found, tuple[str, ...]]:
        """Return what a model is, and the labels that its file names."""
        labels: tuple[str, ...] = ()
        file, step = source.path, _READERS.get(source.kind, _READERS[Kind.ONNX])
        if source.kind in _EXPORTERS:
            file = self.folder / f"{reference}{_EXPORTED}"
            exported = self._run(_EXPORTERS[source.kind], source, Export(str(source.path), str(file)))
            labels = msgspec.json.decode(exported, type=Exported).labels
        request = Read(
            file=str(file),
            out=str(self.folder),
            examples=str(self.wish.examples.resolve()) if self.wish.examples else None,
            shapes=dict(self.wish.shapes),
            prefix="" if reference == REFERENCE else f"{TEACHER}-",
            reference=reference,
        )
        return msgspec.json.decode(self._run(step, source, request), type=Found), labels

    def release(
        self, found: Mapping[str, tuple[Found, tuple[str, ...]]], sources: Mapping[str, _Source], order: Order
    ) -> gates.Receipts:
        """Convert what can be converted, hold it against the gates and write the bundle; return the receipts."""
        models = {kind: model for kind, (model, _) in found.items()}
        first, labels = found[REFERENCE]
        if TEACHER in models:
            _same_borders(first, models[TEACHER])
        judged = judge(self.wish, self.folder, models, self.wish.labels or labels)
        converted = [one for model in models.values() for one in model.made]
        for kind in (kind for kind, model in models.items() if model.convertible):
            converted += self._convert(judged.terms, kind)
        receipts = gates.Receipts(lenient=True, demanded=judged.terms.demanded)
        receipts.take([gates.examples(first.rows_in_all, made_up=first.made_up)])
        file = sources[REFERENCE]
        origin = provenance.of_import(
            file.path, file.kind, order.created, first.digest, sources[TEACHER].path if TEACHER in sources else None
        )
        assembly = Assembly(judged.terms, judged.score, judged.metrics, self.folder, self.children, receipts, self.bases)
        assembly.release(converted, order, origin, first.rows)
        for leftover in self.folder.glob(f"*{_EXPORTED}"):
            leftover.unlink()
        return receipts

    def _convert(self, terms: Terms, kind: str) -> list[Converted]:
        """Convert in one child; if a converter takes that child down, each variant in a child of its own."""
        direct = tuple(name for name in terms.variants if variants.reference_of(name) == kind and variants.is_direct(name))
        try:
            return self._convert_these(terms, kind, direct)
        except StepError:
            return [one for name in direct for one in self._convert_alone(terms, kind, name)]

    def _convert_alone(self, terms: Terms, kind: str, name: str) -> list[Converted]:
        try:
            return self._convert_these(terms, kind, (name,))
        except StepError as error:
            return [Converted(name, Needs(), problem=str(error))]

    def _convert_these(self, terms: Terms, kind: str, names: tuple[str, ...]) -> list[Converted]:
        (result,) = self.children.run([("convert", release.conversion(terms, self.folder, kind, names))], wall_s=READ_S)
        return msgspec.json.decode(result, type=list[Converted])

    def _run(self, step: str, source: _Source, request: msgspec.Struct) -> bytes:
        try:
            (result,) = self.children.run([(step, request)], wall_s=READ_S)
        except (InputError, StepError) as error:
            raise InputError(f"{source.path} can't be imported: {error}") from error
        return bytes(result)


def _same_borders(first: Found, second: Found) -> None:
    for what, here, there in (("inputs", first.inputs, second.inputs), ("outputs", first.outputs, second.outputs)):
        if set(here) != set(there):
            raise InputError(
                f"the cloud's model must have the same {what} as the edge's: "
                f"{', '.join(map(_told, there))} against {', '.join(map(_told, here))}"
            )


def _told(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype}{list(spec.shape)}"
