"""Prints transformers' Auto mappings before and after `import hf_vitfm`, as JSON; run in a process of its own."""

import json
import sys

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING


TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "image_size": 8,
    "patch_size": 4,
}
DECODER = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}


def class_path(thing) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def describe(mapping) -> dict:
    return {
        "configs": dict(mapping._config_mapping),
        "models of configs": dict(mapping._reverse_config_mapping),
        "models": {
            key: [value] if isinstance(value, str) else list(value) for key, value in mapping._model_mapping.items()
        },
        "added": {class_path(key): class_path(value) for key, value in mapping._extra_content.items()},
    }


def native() -> dict:
    """Every Auto class's mapping by name, and what is really built for some of transformers' own configurations."""
    vit, mae = transformers.ViTConfig(**TINY), transformers.ViTMAEConfig(**TINY, **DECODER)
    built = [transformers.AutoModel.from_config(config) for config in (vit, mae, transformers.DeiTConfig(**TINY))]
    built += [transformers.AutoModelForImageClassification.from_config(vit)]
    names = [name for name in dir(transformers) if name.startswith("Auto")]  # any other name would be imported
    return {
        "auto": {
            name: describe(mapping)
            for name in names
            if (mapping := getattr(getattr(transformers, name), "_model_mapping", None)) is not None
        },
        "config": dict(CONFIG_MAPPING._mapping),
        "built": [class_path(type(model)) for model in built],
        "processors": [
            {key: class_path(value) for key, value in IMAGE_PROCESSOR_MAPPING[type(config)].items()}
            for config in (vit, mae)
        ],
    }


if __name__ == "__main__":
    before = native()
    import hf_vitfm  # noqa: F401

    json.dump([before, native()], sys.stdout)
