"""Brings the story's fleet up: keys, broker, cloud, three enrolled devices and their releases, told in sentences."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asking
from processes import OK, Child, Group, StoryError, require_free, run, wait_http, wait_port

from toprope_shared.digest import sha256
from toprope_training import arrays, layout
from toprope_training.bundle import Bundle
from toprope_training.publish import signed_releases

CHANNEL = "stable"
WATCH_S = 120.0
PAUSE_S = 0.3
SETTLED = ("IDLE", "COMMITTED")
SENTENCES = {
    "OFFERED": "is offered by the rollout",
    "PRECHECK": "is held against signatures, floor and engines",
    "FETCHING": "is being fetched over MQTT",
    "RECONSTRUCT": "is complete",
    "VERIFIED": "has the digests that were signed",
    "PROBED": "passed the try-out in a child process",
    "ARMED": "may be activated",
    "ACTIVATING": "is being opened beside the old one",
    "PROBATION": "answers, on probation",
    "COMMITTED": "is kept",
    "DISCARDED": "was discarded",
    "ROLLING_BACK": "is being rolled back",
    "ROLLED_BACK": "was rolled back",
    "SUPERSEDED": "was superseded",
    "BROKEN": "does not open from disk",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the story."""

    name: str
    engines: str
    models: tuple[str, ...]
    port: int

    @property
    def url(self) -> str:
        """The agent's door."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything of the story is."""

    home: Path
    broker_port: int
    cloud_port: int
    devices: tuple[Device, ...]
    env: Mapping[str, str]

    @property
    def cloud_url(self) -> str:
        """The cloud's door."""
        return f"http://127.0.0.1:{self.cloud_port}"

    @property
    def broker_url(self) -> str:
        """The broker's address."""
        return f"mqtt://127.0.0.1:{self.broker_port}"

    def release(self, name: str) -> Path:
        """Return the bundle directory of a recipe."""
        return self.home / "releases" / name


def make_plan(env: Mapping[str, str]) -> Plan:
    """Read the ports and the home from the environment."""
    home = Path(env.get("TOPROPE_HOME") or Path.cwd() / ".toprope").absolute()
    first = _port(env, "TOPROPE_EDGE_PORT", 8501)
    both = ("linear", "digits")
    devices = (
        Device("device-onnx", "onnxruntime", both, first),
        Device("device-tflite", "tflite-runtime", ("digits",), first + 1),
        Device("device-both", "onnxruntime,tflite-runtime", both, first + 2),
    )
    # A room reads TOPROPE_<ROOM>_PORT too; the story gives each process its port as a flag and hides the variables.
    own = {name: value for name, value in env.items() if name not in _PORTS} | {"TOPROPE_HOME": str(home)}
    return Plan(home, _port(env, "TOPROPE_BROKER_PORT", 1883), _port(env, "TOPROPE_CLOUD_PORT", 8000), devices, own)


_PORTS = ("TOPROPE_BROKER_PORT", "TOPROPE_CLOUD_PORT", "TOPROPE_EDGE_PORT")


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdigit() or not 0 < int(text) < 65534:
        raise StoryError(f"{name} is {text!r}, and a port is a number from 1 to 65533.")
    return int(text)


def start_services(plan: Plan, group: Group) -> None:
    """Make keys where there are none, and start broker and cloud."""
    needed = {plan.broker_port: ("broker", "TOPROPE_BROKER_PORT"), plan.cloud_port: ("cloud", "TOPROPE_CLOUD_PORT")}
    needed |= {device.port: (f"agent of {device.name}", "TOPROPE_EDGE_PORT") for device in plan.devices}
    if len(needed) != 2 + len(plan.devices):
        raise StoryError(
            "Two processes would share a port; choose others with TOPROPE_BROKER_PORT, _CLOUD_PORT, _EDGE_PORT."
        )
    require_free(needed)
    if (plan.home / "keys" / "models.pem").exists():
        print(f"The keys in {plan.home / 'keys'} are there already.", flush=True)
    else:
        run("keys", "init", env=plan.env)
    broker = group.start("broker", "broker", "run", "--port", str(plan.broker_port))
    wait_port(broker, plan.broker_port)
    print(f"The broker listens on {plan.broker_url}.", flush=True)
    start_cloud(plan, group)


def start_cloud(plan: Plan, group: Group) -> None:
    """Start the cloud and wait until it answers."""
    cloud = group.start("cloud", "cloud", "run", "--port", str(plan.cloud_port), "--broker", plan.broker_url)
    wait_http(cloud, f"{plan.cloud_url}/v2/health/live")
    print(f"The cloud answers on {plan.cloud_url}.", flush=True)


def start_devices(plan: Plan, group: Group) -> None:
    """Enroll the devices that are not, and start their agents side by side."""
    started: list[tuple[Device, Child]] = []
    for device in plan.devices:
        if not (plan.home / "devices" / device.name / "credentials.json").exists():
            run("keys", "enroll", device.name, env=plan.env)
        flags = ["--device", device.name, "--port", str(device.port), "--engines", device.engines]
        flags += ["--models", ",".join(device.models), "--broker", plan.broker_url, "--cloud", plan.cloud_url]
        started.append((device, group.start(device.name, "edge", "run", *flags, "--probation-seconds", "2")))
    for device, child in started:
        wait_http(child, f"{device.url}/v2/health/live")
        print(f"{device.name} ({device.engines}) answers on {device.url}.", flush=True)


def train(plan: Plan, name: str, *, again: bool) -> Bundle:
    """Train a recipe unless its bundle is there; `again` makes the next version of it."""
    folder = plan.release(name)
    if again or not (folder / layout.MANIFEST).exists():
        version = _next(Bundle.open(folder).manifest.version) if (folder / layout.MANIFEST).exists() else "1.0.0"
        flags = ("--out", str(folder), "--version", version, "--force")
        run("train", name, *flags, env=plan.env, quiet=True)
    else:
        print(f"{name} is trained already ({folder}); `--retrain` makes the next version.", flush=True)
    run("release", "show", str(folder), env=plan.env)
    bundle = Bundle.open(folder)
    weights = arrays.load(folder / layout.WEIGHTS) if (folder / layout.WEIGHTS).exists() else {}
    if "a" in weights and "b" in weights:
        print(
            f"Learned: y = {float(weights['a']):.4f} x {float(weights['b']):+.4f}; made with y = 2 x + noise.", flush=True
        )
    return bundle


def _next(version: str) -> str:
    major, minor, patch = version.split("-")[0].split(".")
    return f"{major}.{minor}.{int(patch) + 1}"


def publish(plan: Plan, bundle: Bundle) -> None:
    """Publish a release unless it is signed and was rolled out by an earlier story."""
    manifest, digest = bundle.manifest, sha256(bundle.manifest_bytes)
    mark = plan.home / "releases" / f"{manifest.model}.published"
    metadata = asking.fetch(f"{plan.cloud_url}/trust/models.json")
    signed = metadata is not None and signed_releases(metadata).get(manifest.path) == digest
    if signed and mark.exists() and mark.read_text() == digest:
        print(f"{manifest.model} {manifest.version} is signed and published already.", flush=True)
        return
    run("release", "publish", str(bundle.folder), "--cloud", plan.cloud_url, "--channel", CHANNEL, env=plan.env)
    mark.write_text(digest)


def devices(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return what the cloud knows of each device."""
    answer = asking.ask("GET", f"{plan.cloud_url}/api/devices")
    if answer.status != OK:
        raise StoryError(f"The cloud does not tell of its devices: {answer.tell()}")
    return {entry["device"]: entry for entry in answer.body["devices"]}


def last_reports(plan: Plan) -> dict[str, int]:
    """Return the number of each device's newest report, so that only newer ones are told."""
    return {
        name: max((report["number"] for report in entry.get("reports", ())), default=0)
        for name, entry in devices(plan).items()
    }


def watch(plan: Plan, group: Group, bundles: Mapping[str, Bundle], told: dict[str, int]) -> None:
    """Tell each new report until every device runs what it should."""
    deadline = time.monotonic() + WATCH_S
    while True:
        group.check()
        known = devices(plan)
        for name, entry in sorted(known.items()):
            _tell(name, entry, told)
        lacking = [text for device in plan.devices for text in _lacking(device, known.get(device.name, {}), bundles)]
        if not lacking:
            print("Every device runs what it should.", flush=True)
            return
        if time.monotonic() > deadline:
            raise StoryError(f"After {WATCH_S:.0f} s {'; '.join(lacking)}. The logs are in {group.logs}.")
        time.sleep(PAUSE_S)


def _tell(name: str, entry: Mapping[str, Any], told: dict[str, int]) -> None:
    for report in sorted(entry.get("reports", ()), key=lambda report: int(report["number"])):
        if report["number"] <= told.get(name, 0):
            continue
        told[name] = report["number"]
        said = SENTENCES.get(report["state"], "reports")
        more = " ".join(part for part in (report.get("code"), report.get("text")) if part)
        ending = f": {more}" if more else "."
        print(f"  {name}: {report['model']} {report['version']} {said} ({report['state']}){ending}", flush=True)


def _lacking(device: Device, entry: Mapping[str, Any], bundles: Mapping[str, Bundle]) -> list[str]:
    if not entry.get("online"):
        return [f"{device.name} is not online"]
    running = {model["model"]: model for model in entry.get("models", ())}
    found = []
    for name in device.models:
        version, model = bundles[name].manifest.version, running.get(name, {})
        if model.get("version") != version or model.get("state") not in SETTLED:
            now = f"{model['version']} in state {model['state']}" if model else "none"
            found.append(f"{device.name} does not run {name} {version} (it has {now})")
    return found


def environment() -> dict[str, str]:
    """Return the story's own environment."""
    return dict(os.environ)
