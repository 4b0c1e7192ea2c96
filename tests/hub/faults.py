"""Faults of the local Hub, at chosen moments: an error for an answer, an answer that is lost or breaks off."""

import re
from dataclasses import dataclass, field
from typing import Literal

from starlette.responses import JSONResponse


@dataclass
class Fault:
    """What goes wrong.

    Attributes:
        pattern: regular expression, searched in the method and the quoted path of a request: "POST .*/commit/".
        status: the answer, in place of the right one; None if the connection is closed.
        moment: for a connection that is closed: "before" the request is carried out, "during" the answer, of which
            half is sent, or "after" the request was carried out, without an answer.
        first: which of the requests that fit is the first to fail, from 1.
        times: how many fail.
        headers: of the answer, such as Retry-After.
        seen: how many requests fitted so far.
    """

    pattern: str
    status: int | None = None
    moment: Literal["before", "during", "after"] = "before"
    first: int = 1
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    seen: int = 0

    def is_due(self, request: str) -> bool:
        if not re.search(self.pattern, request):
            return False
        self.seen += 1
        return self.first <= self.seen < self.first + self.times


class FaultyApp:
    """An application that notes each request, and fails as `faults` say; needs uvicorn below, whose connection it closes.

    Args:
        app: what answers otherwise.
        faults: the first that is due counts.
        requests: method and quoted path of each request are added here.
    """

    def __init__(self, app, faults: list[Fault], requests: list[str]):
        self._app, self._faults, self._requests = app, faults, requests

    async def __call__(self, scope, receive, send) -> None:
        path = scope["raw_path"].decode()
        request = f"{scope['method']} {path}"
        self._requests.append(request)
        scope = {**scope, "path": path}  # routes see %2F, which is part of a revision's name
        due = [fault for fault in self._faults if fault.is_due(request)]
        if not due:
            await self._app(scope, receive, send)
        elif due[0].status is not None:
            answer = JSONResponse({"error": "a fault of this test"}, due[0].status, due[0].headers)
            await answer(scope, receive, send)
        else:
            await self._break_off(due[0].moment, scope, receive, send)

    async def _break_off(self, moment: str, scope, receive, send) -> None:
        async def half(message) -> None:
            if moment == "during":
                if message["type"] == "http.response.body":
                    body = message["body"]
                    message = {**message, "body": body[: len(body) // 2], "more_body": True}
                await send(message)

        if moment != "before":
            await self._app(scope, receive, half)
        send.__self__.transport.close()
        while (await receive())["type"] != "http.disconnect":
            pass
