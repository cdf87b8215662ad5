"""What a caller may ask of training, and what there is to train with. Values in, sentences out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import msgspec

from toprope_shared.errors import InputError, TooLargeError
from toprope_shared.manifest import Version

MAX_SEED = 2**32 - 1
MAX_SOURCE_BYTES = 1 << 20
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class JobRequest(msgspec.Struct, frozen=True):
    """A job that a caller wants.

    Attributes:
        recipe: a built-in recipe's name, or what to call the one in `source`.
        version: the release's semantic version.
        seed: of data and training.
        source: a recipe's Python text, which runs on the service's machine.
    """

    recipe: str
    version: str = "1.0.0"
    seed: int = 0
    source: str | None = None

    def check(self, *, uploads: bool) -> None:
        """Hold the values against what a trainer may be started with.

        Raises:
            InputError: one does not fit, or the source may not be run here.
            TooLargeError: the source is too long.
        """
        if not _NAME.fullmatch(self.recipe):
            raise InputError(
                f"{self.recipe[:80]!r} is not a recipe's name: a lower-case letter, then up to 63 of a-z 0-9 _ -; no path"
            )
        try:
            msgspec.convert(self.version, Version)
        except msgspec.ValidationError as error:
            raise InputError(f"{self.version[:80]!r} is not a semantic version like 1.2.0") from error
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"the seed {self.seed} is not from 0 to {MAX_SEED}")
        if self.source is None:
            return
        if not uploads:
            raise InputError(
                "this service runs no uploaded recipes, because they are programs; name a built-in recipe, "
                "or allow them with training_uploads = true in its settings [cloud]"
            )
        if len(self.source.encode()) > MAX_SOURCE_BYTES:
            raise TooLargeError(f"a recipe's source may have {MAX_SOURCE_BYTES} bytes")


def trainer_command(installed: Iterable[EntryPoint] | None = None) -> tuple[str, ...]:
    """Return the command that trains, without its arguments.

    Raises:
        InputError: the training room is not installed beside the service.
    """
    found = entry_points(group="toprope.commands") if installed is None else installed
    if not any(entry.name == "train" for entry in found):
        raise InputError(
            "this service can't train: toprope-training is not installed beside it; "
            "install it there, or train elsewhere with `toprope train` and publish the bundle"
        )
    return (sys.executable, "-m", "toprope_shared.cli", "train")
