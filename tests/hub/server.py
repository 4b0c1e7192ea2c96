"""A Hub on this machine, for tests: the real API, as far as a client of model repositories needs it, kept in memory.

It knows two users, ada and bob. Not there: Xet, git, datasets and spaces, pull requests, pages of listings.
"""

import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from tests.hub import reading, writing
from tests.hub.contents import Commit, Contents, File, HubError, Repository
from tests.hub.faults import Fault, FaultyApp
from tests.hub.requests import MovedError, no_repository, user_of


def token_of(user: str) -> str:
    """The user's token, which looks like a real one."""
    return "hf_" + hashlib.sha256(user.encode()).hexdigest()[:34]


async def _refuse(request: Request, error: HubError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _redirect(request: Request, error: MovedError) -> Response:
    path = request.url.path.replace(error.old_name, error.new_name, 1)
    return RedirectResponse(f"{path}?{request.url.query}" if request.url.query else path, 307)


async def _unknown(request: Request, error: Exception) -> Response:
    """No route: a name without an owner, which no repository here has, or a part of the API that is missing."""
    path = request.url.path
    if path.startswith("/api/models/") or "/resolve/" in path:
        return await _refuse(request, no_repository(user_of(request)))
    return JSONResponse({"error": "Not found"}, 404)


class LocalHub:
    """The server, run by a thread while this context is entered.

    Attributes:
        contents: what it holds.
        faults: what is to go wrong.
        requests: method and quoted path of each request so far.
        endpoint: the address, for HF_ENDPOINT.
    """

    def __init__(self):
        self.contents = Contents(users={token_of(name): name for name in ("ada", "bob")})
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        errors = {HubError: _refuse, MovedError: _redirect, 404: _unknown}
        app = Starlette(routes=[*writing.ROUTES, *reading.ROUTES], exception_handlers=errors)
        app.state.contents, app.state.tickets = self.contents, {}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            FaultyApp(app, self.faults, self.requests),
            http="h11",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def repository(self, name: str) -> Repository:
        return self.contents.repositories[name]

    def publish(self, name: str, files, private: bool = False, gated: bool = False, branch: str = "main") -> Commit:
        """Put files into a repository, which is made if need be, without a client.

        Args:
            name: owner/name.
            files: contents by path, or a folder.
            private: of a new repository.
            gated: of a new repository.
            branch: which is made, from main, if need be.
        """
        if isinstance(files, str | os.PathLike):
            top = Path(files)
            found = [path for path in top.rglob("*") if path.is_file()]
            files = {path.relative_to(top).as_posix(): path.read_bytes() for path in found}
        if name not in self.contents.repositories:
            self.contents.create(name, private, gated)
        repository = self.repository(name)
        head = repository.branches.setdefault(branch, repository.find("main"))
        new = {path: File(data, head.is_large(path, len(data), data[:512])) for path, data in files.items()}
        self.contents.large.update({file.sha256: file.content for file in new.values() if file.is_large})
        return repository.commit(head.files | new, "published", branch=branch)
