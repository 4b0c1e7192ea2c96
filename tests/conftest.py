"""What holds in every test: no network, no writing to the user's caches, fixed seeds, one thread."""

import os
import random
import tempfile


_CACHE = tempfile.TemporaryDirectory(prefix="hf_vitfm_tests_")
for _name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT"):
    os.environ.pop(_name, None)
os.environ |= {  # before any import that reads them; worker processes and subprocesses inherit them
    "HF_HOME": f"{_CACHE.name}/huggingface",
    "TORCH_HOME": f"{_CACHE.name}/torch",
    "XDG_CACHE_HOME": _CACHE.name,
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
}

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from tests import skips  # noqa: E402
from tests.network import refuse_network  # noqa: E402
from tests.process_pool import ProcessPool  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(skips)
    refuse_network()
    # A loader that ends as cyclic garbage cannot tell its workers to stop any more; each is waited for so many seconds.
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2
    torch.set_num_threads(1)  # tiny shapes gain nothing from a second, and lose much by it beside other programs


@pytest.fixture(autouse=True)
def fixed_seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def two_processes():
    """A gloo group of two processes: `two_processes.run(function, *args)` gives both ranks' results."""
    with ProcessPool(2) as pool:
        yield pool
