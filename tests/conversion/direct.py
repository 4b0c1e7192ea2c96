"""Loading and saving by one format's own functions, for what they do beside finding and opening files."""

import torch


def load(module, model_class, state_dict, **overrides):
    """A model of ours from a file's tensors; every weight has to fit and none may be left over or missing."""
    read = next(read for base, read in module.READERS.items() if issubclass(model_class, base))
    saved, weights = read(model_class, {}, state_dict)
    config = model_class.config_class.from_dict(saved, **overrides)
    image_size, config.image_size = config.image_size, saved["image_size"]
    model = model_class(config)
    model.load_state_dict(weights)
    if image_size != saved["image_size"]:
        model.resize_position_embeddings(image_size)
    return model.eval()


def shapes(state_dict) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def same(found, expected) -> bool:
    """Whether two state dicts have the same names and exactly the same values."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
