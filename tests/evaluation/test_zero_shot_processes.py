"""What several processes build and measure together is what each does alone: the zero-shot classifier, and its accuracy."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_vitfm import CLIPModel, ZeroShotClassifier, evaluate_zero_shot, extract_features
from hf_vitfm.evaluation.zero_shot import zero_shot_report
from tests.data.test_pair_collator import clip_tokenizer
from tests.tiny import random_images, tiny_clip


CLASSES = ["ox", "cat", "{dog}", "black bear", "a", "an ibex of the Alps", "hen"]
TEMPLATES = ["a photo of a {}.", "{}", "art of {} {{x}}", "{}"]  # one comes twice, and counts double
SPECIAL = {"vocab_size": 514, "max_position_embeddings": 30, "bos_token_id": 512, "eos_token_id": 513}


def make_model(**fields) -> CLIPModel:
    """Ours in float64, with the vocabulary of `clip_tokenizer`."""
    return tiny_clip(**{"text": SPECIAL, **fields}).double()


class Counting(torch.nn.Module):
    """Counts what goes through the text tower."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.shapes = model, model.config, []

    def get_text_features(self, input_ids, **options):
        self.shapes.append(tuple(input_ids.shape))
        return self.model.get_text_features(input_ids, **options)


def build(count: int, batch_size: int) -> tuple[torch.Tensor, int]:
    """The weights, and how often the text tower was called."""
    model = Counting(make_model().train())
    group = dist.group.WORLD if dist.is_initialized() else None
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES[:count], TEMPLATES, batch_size, group)
    return classifier.weights, len(model.shapes)


@pytest.mark.parametrize(("count", "batch_size"), [(7, 2), (6, 256), (1, 256)])
def test_processes_share_the_prompts(two_processes, count, batch_size):
    expected, calls = build(count, batch_size)
    answers = two_processes.run(build, count, batch_size)
    for weights, own_calls in answers:
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)
        assert own_calls == (calls + 1) // 2 < calls
    assert torch.equal(answers[0][0], answers[1][0])


def build_between_steps() -> list[torch.Tensor]:
    """A step, the classifier, and another step; sharded where there are several processes."""
    model, group = make_model().train(), None
    ids, images = torch.tensor([[512, 5, 513], [512, 7, 513]]), random_images(2).double()
    if dist.is_initialized():
        group, mesh = dist.group.WORLD, dist.init_device_mesh("cpu", (dist.get_world_size(),))
        model.logit_scale = torch.nn.Parameter(model.logit_scale.detach().view(1))
        for layer in (*model.text_model.encoder.layers, *model.vision_model.encoder.layers):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    found = []
    for _ in range(2):
        loss = model(ids, images, return_loss=True).loss
        loss.backward()
        classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES[:3], TEMPLATES, 2, group)
        found += [loss.detach(), classifier.weights]
        is_sharded = isinstance(model.text_projection.weight, DTensor)
        found.append(torch.tensor(float(is_sharded == dist.is_initialized())))
    return found


def test_a_sharded_model_is_classified_with_between_steps(two_processes):
    expected = build_between_steps()
    for found in two_processes.run(build_between_steps):
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def evaluated(count: int, cache_dir: str | None) -> tuple[dict, list[list[int]]]:
    """Metrics and confusion of images; of each process alone, or of both together."""
    model, group = make_model(), dist.group.WORLD if dist.is_initialized() else None
    rows = [{"pixel_values": image, "label": i % 7} for i, image in enumerate(random_images(count))]
    options = {"cache_dir": cache_dir, "group": group}
    classifier = ZeroShotClassifier.build(model, clip_tokenizer(), CLASSES, TEMPLATES, **options)
    metrics = evaluate_zero_shot(model, rows, classifier, batch_size=4, **options)
    embeds, labels = extract_features(model, rows, batch_size=4, pooling="projected", **options)
    return metrics, zero_shot_report(classifier, embeds, labels).confusion.tolist()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("count", [1, 9, 16])
def test_two_processes_give_the_metrics_of_one(two_processes, tmp_path, count, cached):
    expected = evaluated(count, None)
    for _ in range(1 + cached):
        for found in two_processes.run(evaluated, count, str(tmp_path) if cached else None):
            assert found == expected
    assert len(list(tmp_path.iterdir())) == 2 * cached
