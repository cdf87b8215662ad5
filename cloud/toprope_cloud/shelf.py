"""The releases of one model side by side: which are wanted, which answers for which name, and which may go.

A new release takes over a name once it answers, and the old one goes after that; one that can't run takes over nothing. No
threads, no disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from toprope_cloud.served import Served
from toprope_cloud.version_policy import Policy, choose
from toprope_shared.manifest import is_version

KEPT_ENDED = 8


class Shelf:
    """One model.

    Args:
        model: its name.
        policy: which of its releases are served.

    Attributes:
        releases: those that are signed, not revoked and have a variant for this machine, oldest first.
        ended: some that were revoked, for who asks what became of them.
        names: who answers for a version, a release counter, a label, and None, which is no name at all.
        wanted: the releases that the policy and the labels ask for, newest first.
        stopped: whether an operator has unloaded the model.
    """

    def __init__(self, model: str, policy: Policy) -> None:
        self.model = model
        self.releases: list[Served] = []
        self.ended: list[Served] = []
        self.names: dict[str | None, Served] = {}
        self.wanted: list[Served] = []
        self.stopped = False
        self._policy = policy
        self._aims: Mapping[str, str] = {}
        self._stands: dict[str, Served] = {}

    def add(self, fresh: Served) -> None:
        """Take in a release that was signed; `settle` begins its life if it is wanted."""
        self.releases = sorted([*self.releases, fresh], key=lambda one: one.manifest.release_counter)

    def take_in(self, revoked: Mapping[str, str], aims: Mapping[str, str]) -> None:
        """End what was revoked and note what each label aims at; `settle` does the rest.

        Args:
            revoked: why, by manifest path.
            aims: versions or release counters by label.
        """
        gone = [one for one in self.releases if one.manifest.path in revoked]
        for one in gone:
            if one.live:
                one.leave(f"it was revoked: {revoked[one.manifest.path]}")
        self.ended = [*self.ended, *gone][-KEPT_ENDED:]
        self.releases = [one for one in self.releases if one not in gone]
        self._aims = aims

    def forgive(self) -> None:
        """Let what failed be tried once more."""
        for one in self.releases:
            if one.failed:
                one.want()

    def settle(self) -> None:
        """Decide anew who answers for which name; begin what is wanted and end what is not."""
        runs = [(one.manifest, one) for one in self.releases if not one.failed]
        chosen = choose(self._policy, runs)
        self._move_labels()
        aimed = [one for one in map(self._aimed, self._aims) if one is not None and not one.failed]
        order = dict.fromkeys((*reversed(chosen), *aimed))
        self.wanted = [] if self.stopped else list(order)
        for one in self.wanted:
            one.want()
        kept = {*self.wanted, *(() if self.stopped else self._stands.values())}
        if any(not one.usable for one in self.wanted):  # the old goes when the new has come
            kept |= {one for one in self.releases if one.usable and not self.stopped}
        for one in self.releases:
            if one.live and one not in kept:
                one.leave(
                    "it was unloaded by request" if self.stopped else "newer releases or settings have taken its place"
                )
        self._name(chosen, kept or order.keys())

    def labels(self) -> dict[str, Served]:
        """Return who answers for each label."""
        return dict(self._stands)

    def listed(self) -> list[Served]:
        """Return the releases whose life has begun, oldest first."""
        return [one for one in (*self.ended, *self.releases) if one.stage is not None]

    def _move_labels(self) -> None:
        """Let each label stand for what it aims at, once that answers; until then for what it stood for."""
        stands: dict[str, Served] = {}
        for label in self._aims:
            target, former = self._aimed(label), self._stands.get(label)
            if target is None:
                continue
            waits = former is not None and former in self.releases and former.usable and not target.usable
            stands[label] = former if former is not None and waits else target
        self._stands = stands

    def _aimed(self, label: str) -> Served | None:
        return next((one for one in reversed(self.releases) if is_version(one.manifest, self._aims[label])), None)

    def _name(self, chosen: list[Served], kept: Iterable[Served]) -> None:
        self.names.clear()
        self.names.update(self._stands)
        # One that failed keeps its name, so that who asks for it is told why.
        for one in {*kept, *(one for one in self.releases if one.failed)}:
            self.names[one.manifest.version] = self.names[str(one.manifest.release_counter)] = one
        by_age = [one for one in self.releases if one.usable]
        newest = [one for one in chosen if one.usable] or by_age or chosen or self.releases
        if newest:
            self.names[None] = newest[-1]
