"""What the tests of the models share."""

import pytest
import torch

from hf_vitfm import ViTForImageClassification
from tests.tiny import random_images, randomize, tiny_config


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny shapes gain nothing from a second thread, and lose much by it where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config():
    return tiny_config()


@pytest.fixture
def images():
    return random_images()


@pytest.fixture
def classifier(config):
    """A classifier of random weights, in evaluation mode."""
    return randomize(ViTForImageClassification(config))


@pytest.fixture
def nan_memory():
    """Memory that nobody has written to reads as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
