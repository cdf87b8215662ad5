"""Starts the story's processes, waits until they answer, and always ends them.

All children die with the story: on the way out by SIGTERM and then SIGKILL, and by the kernel when the story is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import urllib3

PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
GRACE_S = 10.0
READY_S = 60.0
PAUSE_S = 0.1
TAIL_LINES = 15
OK = 200


class StoryError(Exception):
    """The story can't go on; the text is a sentence for the reader."""


@dataclass(slots=True)
class Child:
    """One process of the story."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """Return the last lines of the log."""
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
        return ""

    def check(self) -> None:
        """Fail with the log's tail when the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise StoryError(f"The {self.name} ended with code {code}. The end of {self.log}:\n{self.tail()}")

    def end(self) -> None:
        """Ask the process to end; after ten seconds make it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.wait_ended(time.monotonic() + GRACE_S)

    def wait_ended(self, deadline: float) -> None:
        """Wait for the end until `deadline` on the steady clock, then kill."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(slots=True)
class Group:
    """All processes of the story; leaving it ends them, the last started first."""

    logs: Path
    env: Mapping[str, str]
    children: dict[str, Child] = field(default_factory=dict)

    def __enter__(self) -> Group:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end_all()

    def start(self, name: str, *arguments: str) -> Child:
        """Start `toprope <arguments>`; its output goes to `<name>.log`."""
        log = self.logs / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(toprope()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                start_new_session=True,  # Ctrl-C goes to the story, which then ends its children in order
                preexec_fn=_die_with(os.getpid()),
            )
        child = Child(name, process, log)
        self.children[name] = child
        return child

    def check(self) -> None:
        """Fail when any process has ended by itself."""
        for child in self.children.values():
            child.check()

    def end(self, name: str) -> None:
        """End one process."""
        self.children.pop(name).end()

    def end_all(self) -> None:
        """End all processes, whatever happened."""
        children = list(reversed(self.children.values()))
        self.children.clear()
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for child in children:
            child.wait_ended(deadline)


def toprope() -> Path:
    """Return the command beside this interpreter."""
    command = Path(sys.executable).with_name("toprope")
    if not command.exists():
        raise StoryError(f"There is no {command}; run `make setup` first.")
    return command


def run(*arguments: str, env: Mapping[str, str], quiet: bool = False) -> None:
    """Run `toprope <arguments>` to its end; a failure ends the story."""
    done = subprocess.run(
        [str(toprope()), *arguments],
        env=dict(env),
        check=False,
        stdout=subprocess.DEVNULL if quiet else None,
        preexec_fn=_die_with(os.getpid()),
    )
    if done.returncode:
        raise StoryError(f"`toprope {' '.join(arguments)}` failed with code {done.returncode}; its sentence stands above.")


def require_free(ports: Mapping[int, tuple[str, str]]) -> None:
    """Fail with a sentence when a port is taken; each has its user and the variable that chooses another."""
    for port, (user, variable) in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise StoryError(
                    f"Port {port} is needed for the {user} and is taken ({error.strerror}); end what uses it, "
                    f"or choose another: {variable}={port + 1000} make run"
                ) from error


def wait_http(child: Child, url: str, *, seconds: float = READY_S) -> None:
    """Wait until `url` answers 200; fail when the process dies or the time is over."""
    deadline, pool = time.monotonic() + seconds, urllib3.PoolManager(retries=False, timeout=2.0)
    while time.monotonic() < deadline:
        child.check()
        with suppress(urllib3.exceptions.HTTPError):
            if pool.request("GET", url).status == OK:
                return
        time.sleep(PAUSE_S)
    raise StoryError(
        f"The {child.name} was not ready after {seconds:.0f} s ({url}). The end of {child.log}:\n{child.tail()}"
    )


def wait_port(child: Child, port: int, *, seconds: float = READY_S) -> None:
    """Wait until something listens on `port`; fail when the process dies or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        child.check()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(PAUSE_S)
    raise StoryError(f"The {child.name} did not listen on port {port} after {seconds:.0f} s.\n{child.tail()}")


def _die_with(parent: int) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)  # loaded before the fork: nothing may be imported after it

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return ask
