"""A release as a directory: opened only when every byte that its manifest names is there and right.

The manifest, the golden set, the variants and their chunk manifests are the release; `weights.npz` (held against the
provenance), `saved_model/` and `train.log` are for people and are not published.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from toprope_shared import manifest as manifests
from toprope_shared.chunks import ChunkManifest
from toprope_shared.digest import sha256, sha256_file
from toprope_shared.errors import InputError
from toprope_shared.manifest import Artifact, Manifest, Variant
from toprope_training import arrays, layout


class File(NamedTuple):
    """One blob of a release: what it is called and where it stands."""

    digest: str
    path: Path


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle directory."""

    folder: Path
    manifest: Manifest
    manifest_bytes: bytes

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read a bundle and hold every file against the manifest.

        Raises:
            InputError: a file is missing, altered or not what the manifest says; the text names it.
        """
        data = _read(folder / layout.MANIFEST)
        try:
            manifest = manifests.parse(data)
        except InputError as error:
            raise InputError(f"{folder / layout.MANIFEST}: {error}") from error
        bundle = cls(folder, manifest, data)
        _check_artifact(bundle.golden, manifest.golden.artifact)
        for variant in manifest.variants:
            _check_artifact(bundle.path(variant), variant.artifact)
            for delta in variant.deltas:
                _check_artifact(delta_path(bundle.path(variant), delta.base), delta.artifact)
        _check_weights(folder / layout.WEIGHTS, manifest.provenance.weights_sha256)
        return bundle

    @property
    def golden(self) -> Path:
        """The golden set's file."""
        return self.folder / layout.GOLDEN

    def path(self, variant: Variant) -> Path:
        """Return a variant's file."""
        return self.folder / variant.filename

    def files(self) -> tuple[File, ...]:
        """Return every blob to publish, the manifest first."""
        found = [File(sha256(self.manifest_bytes), self.folder / layout.MANIFEST)]
        named = [(self.golden, self.manifest.golden.artifact)]
        for variant in self.manifest.variants:
            file = self.path(variant)
            named.append((file, variant.artifact))
            named += [(delta_path(file, delta.base), delta.artifact) for delta in variant.deltas]
        for path, artifact in named:
            found.append(File(artifact.sha256, path))
            if artifact.chunks:
                found.append(File(artifact.chunks, chunks_path(path)))
        return tuple(found)


def chunks_path(file: Path) -> Path:
    """Return where the chunk manifest of an artifact's file stands."""
    return file.with_name(file.name + layout.CHUNKS)


def delta_path(file: Path, base: str) -> Path:
    """Return where the delta from the file with digest `base` to a variant's file stands."""
    return file.with_name(f"{file.name}.from-{base[:12]}{layout.DELTA}")


def describe(file: Path, *, chunked: bool) -> Artifact:
    """Return the artifact that a file is; `chunked` also writes its chunk manifest beside it."""
    digest, length = sha256_file(file), file.stat().st_size
    if not chunked:
        return Artifact(digest, length)
    with file.open("rb") as opened:
        table = ChunkManifest.build(opened).encode()
    chunks_path(file).write_bytes(table)
    return Artifact(digest, length, sha256(table), len(table))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"this is not a whole bundle: can't read {path}: {error.strerror}") from error


def _check_artifact(path: Path, artifact: Artifact) -> None:
    _check_bytes(path, artifact.sha256, artifact.length)
    if artifact.chunks is None:
        return
    table = _check_bytes(chunks_path(path), artifact.chunks, artifact.chunks_length)
    chunks = ChunkManifest.parse(table)
    if chunks.sha256.hex() != artifact.sha256 or chunks.length != artifact.length:
        raise InputError(f"{chunks_path(path)} is the chunk manifest of another file than {path.name}; train again")


def _check_bytes(path: Path, digest: str, length: int) -> bytes:
    data = _read(path)
    if len(data) != length or sha256(data) != digest:
        raise InputError(
            f"{path} is not the file that the manifest names: {len(data)} bytes with digest {sha256(data)[:12]}…, "
            f"expected {length} with {digest[:12]}…; train again"
        )
    return data


def _check_weights(path: Path, digest: str) -> None:
    if not path.exists():
        return
    if arrays.digest(arrays.load(path)) != digest:
        raise InputError(f"{path} does not hold the weights that the manifest's provenance names; train again")
