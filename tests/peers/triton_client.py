"""Asks a model as tritonclient's users do, in an environment that has tritonclient and nothing of ours.

`python triton_client.py HOST:PORT MODEL IN.npz OUT.npz binary|json`: the inputs by name, then the outputs by name.
"""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.http as triton  # type: ignore[import-not-found]


def main(place: str, model: str, source: str, target: str, form: str) -> None:
    """Ask once and write every output down."""
    binary = form == "binary"
    client = triton.InferenceServerClient(place)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    described = client.get_model_metadata(model)
    datatypes = {one["name"]: one["datatype"] for one in described["inputs"]}
    inputs = []
    with np.load(source) as arrays:
        for name in arrays.files:
            tensor = triton.InferInput(name, list(arrays[name].shape), datatypes[name])
            tensor.set_data_from_numpy(arrays[name], binary_data=binary)
            inputs.append(tensor)
    names = [one["name"] for one in described["outputs"]]
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(model, inputs, outputs=wanted)
    np.savez(target, **{name: answer.as_numpy(name) for name in names})


if __name__ == "__main__":
    main(*sys.argv[1:])
