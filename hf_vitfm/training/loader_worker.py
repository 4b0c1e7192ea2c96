"""Loader workers that outlive a SIGTERM to the whole process group, so that the step under way can end in a checkpoint."""

import os
import signal
import threading
from collections.abc import Callable


def start_worker(then: Callable[[int], None] | None, number: int) -> None:
    """For `DataLoader(worker_init_fn=partial(start_worker, then))`: listen to the parent's SIGTERM alone.

    Ignoring the signal altogether would keep a parent that ends from ending its workers.

    Args:
        then: what else a worker does first.
        number: of the worker.
    """
    if hasattr(signal, "sigwaitinfo"):  # of Linux, not of macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(number)


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
