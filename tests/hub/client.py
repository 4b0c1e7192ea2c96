"""A process that knows no Hub but the local one, for what reads its address, its cache and its switches at import."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

from tests.network import refuse_network


def client_environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a client: without a token, online, and with a cache of its own.

    Args:
        endpoint: address of the local Hub.
        home: folder for the cache.
        **more: further variables, such as HF_TOKEN.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
    return inherited | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",  # the server cannot refuse it
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }


class ClientError(RuntimeError):
    """A function failed in the client's process; the message is the traceback there.

    Attributes:
        kind: name of the exception's class.
        text: the exception's own text, in one line.
    """

    def __init__(self, kind: str, text: str, message: str):
        super().__init__(kind, text, message)
        self.kind, self.text, self.message = kind, text, message

    def __str__(self) -> str:
        return self.message


class Client:
    """Runs functions of test modules in one process with an environment of its own, while this context is entered.

        def names(repo_id):                            # at the top level of a test module
            return list_repo_files(repo_id)

        def test_names(hub, client):
            assert "config.json" in client.run(names, "ada/vit")

    Args:
        environment: all of the process's environment variables.
        log: file that takes what it prints, standard error included.
    """

    def __init__(self, environment: dict[str, str], log: Path):
        self.environment, self.log = environment, log
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _enter, (str(log),))

    def __enter__(self) -> "Client":
        with mock.patch.dict(os.environ, self.environment, clear=True):  # inherited, so it is there before any import
            self._pool.submit(os.getpid)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable, *args: Any, timeout_seconds: float = 120.0, **kwargs: Any) -> Any:
        """Call a function there and give back its result.

        Raises:
            ClientError: if it raised.
            TimeoutError: if it took too long.
        """
        return self._pool.submit(_call, function, args, kwargs).result(timeout_seconds)

    def failure(self, function: Callable, *args: Any, **kwargs: Any) -> ClientError:
        """The error of a function that has to fail there."""
        try:
            result = self.run(function, *args, **kwargs)
        except ClientError as error:
            return error
        raise AssertionError(f"{function.__name__} did not fail; it gave {result!r}")


def at_once(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Call a function without the waiting of the Hub's client between its tries, for `Client.run(at_once, ...)`."""
    with mock.patch("time.sleep"):
        return function(*args, **kwargs)


def _enter(log: str) -> None:
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    refuse_network()


def _call(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:  # as text: some exceptions of the client hold connections, which do not pickle
        text = " ".join(str(error).split())
        failure = ClientError(type(error).__name__, text, traceback.format_exc())
    raise failure
