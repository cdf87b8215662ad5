"""What the Open Inference door tells of a model: its metadata, and its configuration in Triton's words. Pure functions.

Source: Open Inference Protocol v2, "Model Metadata"; Triton's model configuration extension and model_config.proto.
"""

from __future__ import annotations

from typing import Any

import msgspec

from toprope_shared.inference import ModelState, ModelStatus
from toprope_shared.manifest import Manifest
from toprope_shared.serving.batching import BatchSettings
from toprope_shared.tensors import TensorSpec

# Source: Triton's index; what neither answers nor is on its way to is unavailable.
_STATES = {
    ModelState.AVAILABLE: "READY",
    ModelState.LOADING: "LOADING",
    ModelState.UNLOADING: "UNLOADING",
    ModelState.START: "LOADING",
    ModelState.END: "UNAVAILABLE",
}


def metadata(manifest: Manifest, statuses: tuple[ModelStatus, ...]) -> dict[str, Any]:
    """Return a model's metadata.

    Args:
        manifest: of the release that is described.
        statuses: of all releases of the model that are held here.
    """
    described: dict[str, Any] = {
        "name": manifest.model,
        "versions": [one.version for one in _asked_for(manifest, statuses)],
        "platform": _platform(manifest, statuses),
        "inputs": [msgspec.structs.asdict(spec) for spec in manifest.inputs],
        "outputs": [msgspec.structs.asdict(spec) for spec in manifest.outputs],
    }
    if manifest.labels:
        described["labels"] = manifest.labels
    if manifest.preprocessing:
        described["preprocessing"] = [msgspec.to_builtins(one) for one in manifest.preprocessing]
    return described


def config(manifest: Manifest, statuses: tuple[ModelStatus, ...], batching: BatchSettings | None) -> dict[str, Any]:
    """Return a release's configuration as Triton writes a `ModelConfig`.

    Args:
        manifest: of the release.
        statuses: of all releases of the model that are held here.
        batching: how requests are joined; None where they are not.
    """
    joined = is_batched(manifest) and batching is not None
    # A model that takes batches takes them of any size; Triton needs a number above 0 to say that it does.
    most = (batching or BatchSettings()).max_rows if is_batched(manifest) else 0
    platform = _platform(manifest, statuses)
    described: dict[str, Any] = {
        "name": manifest.model,
        "platform": platform,
        "backend": platform.partition("_")[0],
        "version_policy": {"specific": {"versions": sorted(one.release_counter for one in _asked_for(manifest, statuses))}},
        "max_batch_size": most,
        "input": [_tensor(spec, batched=most > 0) for spec in manifest.inputs],
        "output": [_tensor(spec, batched=most > 0) for spec in manifest.outputs],
        "parameters": {"release": {"string_value": manifest.version}},
    }
    if joined and batching is not None and batching.mode != "off":
        described["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": round(batching.window_s * 1_000_000),
            "default_queue_policy": {"max_queue_size": batching.max_queue, "allow_timeout_override": True},
        }
    return described


def is_batched(manifest: Manifest) -> bool:
    """Say whether every tensor of a model has a batch as its first axis."""
    return all(spec.shape[:1] == (-1,) for spec in (*manifest.inputs, *manifest.outputs))


def index_entry(status: ModelStatus) -> dict[str, str]:
    """Return a release as the repository's index lists it."""
    return {
        "name": status.manifest.model,
        "version": status.manifest.version,
        "state": "READY" if status.ready else _STATES[status.state],
        "reason": status.reason,
    }


def _asked_for(manifest: Manifest, statuses: tuple[ModelStatus, ...]) -> list[Manifest]:
    """Return the releases that may be asked for: not those that have ended."""
    return [status.manifest for status in statuses if status.state is not ModelState.END] or [manifest]


def _platform(manifest: Manifest, statuses: tuple[ModelStatus, ...]) -> str:
    held = (status.platform for status in statuses if status.manifest.version == manifest.version and status.platform)
    return next(held, f"toprope_{manifest.variants[0].format}")


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": spec.shape[1:] if batched else spec.shape}
