"""What the tests of CLIP's foreign formats share."""

import torch
from torch import Tensor

from hf_vitfm import CLIPModel


def load(module, model_class, config: dict, state_dict: dict[str, Tensor]):
    """What a format's module makes of a configuration and weights, all of which must have found their place."""
    read = next(read for base, read in module.READERS.items() if issubclass(model_class, base))
    fields, weights = read(model_class, config, dict(state_dict))
    config = model_class.config_class.from_dict(fields)
    model, info = model_class.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@torch.no_grad()
def assert_same_features(ours: CLIPModel, images: Tensor, texts: Tensor, image_features, text_features, atol=1e-5):
    """Compare projected features of both towers with another library's, which must tell its inputs apart."""
    found = ours.get_image_features(images).pooler_output
    torch.testing.assert_close(found, image_features, rtol=0, atol=atol * max(1, image_features.abs().max().item()))
    found = ours.get_text_features(texts).pooler_output
    torch.testing.assert_close(found, text_features, rtol=0, atol=atol * max(1, text_features.abs().max().item()))
    for features in (image_features, text_features):
        assert (features[0] - features[1]).norm() > 0.01 * features[0].norm()
