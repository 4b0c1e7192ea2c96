"""What the tests of foreign formats share."""

import pytest
import transformers

from tests.tiny import FIELDS, randomize


@pytest.fixture
def theirs():
    """transformers' ViT classifier of random weights."""
    return randomize(transformers.ViTForImageClassification(transformers.ViTConfig(**FIELDS)))


@pytest.fixture
def folder(tmp_path, theirs):
    """A folder that transformers saved."""
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"
