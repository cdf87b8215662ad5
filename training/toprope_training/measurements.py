"""What was measured of a release beyond its manifest: the numbers behind the pictures of its report.

Stands as `measurements.json` in the bundle, for people; it is counts and curves over the holdout, never rows of it, and it
is not published.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from toprope_shared.errors import InputError

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


class Parity(msgspec.Struct, frozen=True):
    """How far one variant on one engine is from its reference, row by row of the holdout.

    Attributes:
        quantiles_ppm: of the largest distance in a row, at `QUANTILES`, in millionths of max(1, |largest reference output|).
    """

    variant: str
    engine: str
    quantiles_ppm: tuple[float, ...]


class Confusion(msgspec.Struct, frozen=True):
    """Of a classifier's variant: how many holdout rows of class i (first index) were called class j (second)."""

    variant: str
    counts: tuple[tuple[int, ...], ...]


class Errors(msgspec.Struct, frozen=True):
    """Of any other variant: a histogram of output minus target over the holdout.

    Attributes:
        edges: of the bins, one more than there are counts.
    """

    variant: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Reliability(msgspec.Struct, frozen=True):
    """Of a calibrated variant: is a confidence of 0.8 right 8 times of 10? Rows that the calibration did not see.

    Attributes:
        counts: rows in each of equally wide bins of the calibrated confidence from 0 to 1.
        confidence: mean confidence of each bin's rows; 0 in an empty bin.
        accuracy: share of each bin's rows that were right; 0 in an empty bin.
        before: the expected calibration error with temperature 1.
        after: the same with the calibration's temperature.
    """

    variant: str
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    before: float
    after: float


class CascadePoint(msgspec.Struct, frozen=True):
    """One threshold: the share of rows sent to the cloud, and the accuracy of both together."""

    tau: float
    sent: float
    accuracy: float


class Cascade(msgspec.Struct, frozen=True):
    """What asking the cloud below a threshold costs and brings, on rows that the calibration did not see.

    Attributes:
        chosen: the point of the calibration's own tau.
        edge: accuracy of the edge variant alone.
        cloud: accuracy of the cloud's variant alone.
    """

    variant: str
    cloud_variant: str
    points: tuple[CascadePoint, ...]
    chosen: CascadePoint
    edge: float
    cloud: float


class Measurements(msgspec.Struct, frozen=True):
    """Everything that a report shows beside the manifest.

    Attributes:
        left_out: variants, or engines for one, that an imported model does without, each with the reason.
    """

    holdout_rows: int
    parity: tuple[Parity, ...] = ()
    confusion: tuple[Confusion, ...] = ()
    errors: tuple[Errors, ...] = ()
    reliability: tuple[Reliability, ...] = ()
    cascades: tuple[Cascade, ...] = ()
    left_out: tuple[str, ...] = ()


def write(path: Path, measurements: Measurements) -> None:
    """Write the measurements as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(measurements), indent=1) + b"\n")


def read(path: Path) -> Measurements:
    """Read measurements.

    Raises:
        InputError: there are none, or they are not in this form.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measurements)
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(f"{path} holds no measurements of a release: {error}") from error
