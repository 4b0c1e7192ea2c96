"""What the tests of the models share."""

import pytest
import torch

from hf_vitfm import ViTForImageClassification
from tests.tiny import random_images, randomize, tiny_config


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
