"""FastAPI as its documentation shows it: a pydantic model in, one out; slow models in its thread pool, on both cores."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from opened import NAMES, SHORT, from_bytes, opened, port
from pydantic import BaseModel


class Question(BaseModel):
    """Rows of numbers."""

    x: list[list[float]]


class Answer(BaseModel):
    """Rows of numbers."""

    y: list[list[float]]


app = FastAPI()


def _add(name: str) -> None:
    run = opened(name)

    async def short(question: Question) -> Answer:
        return Answer(y=run(question.x).tolist())

    def long(question: Question) -> Answer:
        return Answer(y=run(question.x).tolist())

    async def raw(request: Request) -> Any:
        return Answer(y=run(from_bytes(await request.body())).tolist())

    app.post(f"/{name}", response_model=Answer)(short if name in SHORT else long)
    app.post(f"/raw/{name}", response_model=Answer)(raw)


for _name in NAMES:
    _add(_name)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port(), loop="uvloop", http="httptools", access_log=False, log_level="warning")
