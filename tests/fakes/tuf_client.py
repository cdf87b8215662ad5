"""python-tuf's own client over files: what any TUF client makes of the metadata in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater

BASE_URL = "files://"


class Files(FetcherInterface):
    """Fetches from a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            yield (self._folder / url.removeprefix(BASE_URL).lstrip("/")).read_bytes()
        except FileNotFoundError as error:
            raise DownloadHTTPError(url, 404) from error


class TufClient:
    """A client that keeps what it has verified in `kept` between its calls.

    Args:
        kept: its own folder, made when missing.
        trust: the folder of the metadata.
        root: the anchor; version 1 of the root by default.
    """

    def __init__(self, kept: Path, trust: Path, root: bytes | None = None) -> None:
        self._kept, self._trust = kept, trust
        self._root = root or (trust / "1.root.json").read_bytes()
        kept.mkdir(parents=True, exist_ok=True)

    def look_up(self, *paths: str) -> list[TargetFile | None]:
        """Refresh all metadata, verified, and return what is signed for the paths; tuf's own errors come through."""
        updater = Updater(str(self._kept), BASE_URL, fetcher=Files(self._trust), bootstrap=self._root)
        updater.refresh()
        return [updater.get_targetinfo(path) for path in paths]
