"""Classes of one name: a warning, and an answer that does not hang on rounding."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_vitfm import ZeroShotClassifier
from hf_vitfm.evaluation.prompts import repeated_names, write_prompts
from hf_vitfm.evaluation.zero_shot import zero_shot_metrics
from tests.data.test_pair_collator import clip_tokenizer
from tests.evaluation.test_zero_shot_processes import TEMPLATES, make_model


def test_a_prompt_of_two_classes_is_of_both():
    with pytest.warns(
        UserWarning, match=r"same name: 0 and 2 \('ox'\), 0 and 3 \('ox'\)\. No image .* later classes"
    ) as seen:
        prompts = write_prompts(["ox", "hen", "ox", "ox"], ["a {}", "{}"])
    assert prompts == {"a ox": [0, 2, 3], "ox": [0, 2, 3], "a hen": [1], "hen": [1]}
    assert len(seen) == 1
    assert seen[0].filename == __file__  # it points at the caller


def test_a_warning_is_shown_once():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            write_prompts(["ox", "ox"], ["{}"])
    assert len(seen) == 1


def test_names_that_differ_are_no_repeats():
    assert repeated_names(["ox", "Ox", "ox "]) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_prompts(["ox", "Ox"], ["{}"])


def test_classes_of_one_name_tie_exactly_and_the_first_is_the_answer():
    names = [f"name {number}" for number in range(40)]
    names[33] = names[39] = names[7]
    with pytest.warns(UserWarning, match="same name"):
        classifier = ZeroShotClassifier.build(make_model().float(), clip_tokenizer(), names, TEMPLATES)
    for rows in (1, 2, 3, 17, 64):
        images = classifier.weights.T[[7] * rows] + 0.01 * torch.randn(rows, len(classifier.weights))
        logits = classifier(images)
        assert torch.equal(logits[:, [33, 39]], logits[:, [7, 7]])
        cosines = F.normalize(images.double(), dim=1) @ classifier.weights.double()
        np.testing.assert_allclose(logits, 100 * cosines, atol=1e-4)
        near = cosines.topk(4).values
        assert (near[:, 0] - near[:, 3] > 1e-6).all()  # nothing but the three is near
        assert (logits.argmax(dim=1) == 7).all()
        # Images of the first class are right, those of a later one are not; with all three they are among the best 5.
        for label, expected in ((7, 1.0), (33, 0.0), (39, 0.0)):
            metrics = zero_shot_metrics(classifier, images, torch.full((rows,), label))
            assert (metrics["top1"], metrics["top5"]) == (expected, 1.0)


def test_ties_that_rounding_broke_would_be_mended():
    # Columns that a product rounded differently, as some shapes do.
    weights = F.normalize(torch.randn(5, 4), dim=0)
    weights[:, 3] = weights[:, 1] * (1 + 1e-6)
    classifier = ZeroShotClassifier(weights, ("a", "ox", "b", "ox"), ("{}",))
    logits = classifier(weights.T[[3, 3]])
    assert torch.equal(logits[:, 1], logits[:, 3])
    assert logits.argmax(dim=1).tolist() == [1, 1]
