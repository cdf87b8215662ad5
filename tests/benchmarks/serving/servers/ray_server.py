"""Ray Serve: an application a model, one replica each."""

from __future__ import annotations

import signal
from typing import Any

import ray
from opened import BATCH_WAIT_S, MAX_BATCH, NAMES, from_bytes, opened, port
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Onnx:
    """Calls onnxruntime."""

    def __init__(self, name: str) -> None:
        self._run = opened(name)

    async def __call__(self, request: Request) -> Any:
        """Answer one request."""
        if request.headers["content-type"] == "application/octet-stream":
            return {"y": self._run(from_bytes(await request.body())).tolist()}
        return {"y": self._run((await request.json())["x"]).tolist()}


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Batched:
    """Calls onnxruntime once for all that waited."""

    def __init__(self, name: str) -> None:
        self._run = opened(name)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)  # type: ignore[untyped-decorator]
    async def many(self, rows: list[Any]) -> list[Any]:
        """Answer all rows."""
        return [[row] for row in self._run(rows).tolist()]

    async def __call__(self, request: Request) -> Any:
        """Answer one request."""
        return {"y": await self.many((await request.json())["x"][0])}


def main() -> None:
    """Serve every model until SIGTERM."""
    ray.init(num_cpus=4, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port()}, logging_config=LoggingConfig(enable_access_log=False))
    for name in NAMES:
        kind: Any = Batched if name == "heavy" else Onnx  # deployments: the decorator's
        serve.run(kind.bind(name), name=name, route_prefix=f"/{name}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
