"""One training job's folder: its log, its bundle, its uploaded recipe, and nothing else once the job has ended."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from toprope_cloud.job_log import TAIL_BYTES, JobLog
from toprope_cloud.job_rows import Job

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class JobFolder:
    """Where a job's files stand, and what the trainer is told about them."""

    path: Path
    job: Job

    @property
    def log(self) -> Path:
        """What the trainer said."""
        return self.path / "job.log"

    @property
    def bundle(self) -> Path:
        """What the trainer made."""
        return self.path / "bundle"

    @property
    def source(self) -> Path:
        """The uploaded recipe."""
        return self.path / f"{self.job.recipe}.py"

    def make(self, source: str | None) -> None:
        """Make the folder, with the uploaded recipe if there is one."""
        self.path.mkdir(parents=True)
        if source is not None:
            self.source.write_text(source, encoding="utf-8")

    def arguments(self) -> list[str]:
        """Return what `toprope train` is called with."""
        job = self.job
        recipe = str(self.source.absolute()) if job.uploaded else job.recipe
        given = ["--out", str(self.bundle.absolute()), "--version", job.version, "--seed", str(job.seed)]
        return [recipe, *given, "--progress", "json"]

    def has_bundle(self) -> bool:
        """Say whether there is a bundle; whether it is right is for its reader to find out."""
        return (self.bundle / MANIFEST).is_file()

    def take_other_logs(self, kept: JobLog) -> None:
        """Add the end of the log that the trainer leaves beside the bundle when one of its own children crashed."""
        for file in sorted(self.path.glob("*.log")):
            if file == self.log:
                continue
            with file.open("rb") as opened:
                opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
                for line in opened.read().splitlines():
                    kept.write(line)

    def tidy(self) -> None:
        """Delete what a stopped trainer had half made."""
        if not self.path.is_dir():
            return
        keep = {self.log, self.bundle, self.source}
        for entry in self.path.iterdir():
            if entry in keep:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
