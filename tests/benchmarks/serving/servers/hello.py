"""The least that a Python server can do: reads a whole POST and answers 200 with a few bytes; no model, no JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import uvloop
from opened import port

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"y":[[1.0]]}'


class Hello(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: Any) -> None:
        """Begin; uvloop's transports are asyncio's by their methods alone."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Answer."""
        self._transport.write(ANSWER)


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Hello, "127.0.0.1", port())
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
