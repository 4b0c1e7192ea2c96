"""The modelling code beside a model's weights, for receivers who do not have this library.

transformers would copy the files too, but name only the one Auto class of the model that is saved.
"""

import json
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..conversion.publish import staged


_MODELS = f"{__package__.partition('.')[0]}.models."


def write_remote_code(directory: str | Path, model_class: type) -> list[Path]:
    """Copy a model's code beside its weights, and name its classes in config.json.

    What transformers' Auto classes (`AutoConfig`, `AutoModel` and those of the heads) give for the model's type where
    this library is imported, they then give without it, with `trust_remote_code=True`. Where it is imported, its own
    classes are used and the files are not run. The files appear together with the changed config.json.

    Args:
        directory: folder of a saved model.
        model_class: its class, one of this library's models.

    Returns:
        The files of code, sorted; those that the classes need and no others.

    Raises:
        FileNotFoundError: if there is no config.json.
        ValueError: if the class is not this library's, the folder holds another type of model, or a tower of a CLIP
            needs code that would not be there.
    """
    directory = Path(directory)
    classes = remote_classes(model_class)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; code goes beside a saved model. Save the model there first.")
    config = json.loads(path.read_text(encoding="utf-8"))
    _check_config(config, model_class)
    config["auto_map"] = {auto: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for auto, cls in classes.items()}
    sources = code_files(classes.values())
    with staged(directory) as staging:
        for source in sources:
            (staging / source.name).write_bytes(source.read_bytes())
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (staging / path.name).write_text(text + "\n", encoding="utf-8")
    return [directory / source.name for source in sources]


def remote_classes(model_class: type) -> dict[str, type]:
    """This library's classes for the type of a model, by the name of their Auto class, `AutoConfig` first.

    Raises:
        ValueError: if the class is not this library's.
    """
    if not model_class.__module__.startswith(_MODELS):
        raise ValueError(
            f"Code can go along with models of this library; got {model_class.__module__}.{model_class.__name__}. "
            "transformers' own classes need none; for a class of yours, use transformers' `register_for_auto_class`."
        )
    config_class = model_class.config_class
    found = {"AutoConfig": config_class}
    for name, auto in sorted(vars(modeling_auto).items()):
        known = auto._model_mapping if name.startswith("AutoModel") else {}
        if config_class in known and known[config_class].__module__.startswith(_MODELS):
            found[name] = known[config_class]
    return found


def code_files(classes) -> list[Path]:
    """The files that define classes, and those that these import, as transformers' loader will look for them."""
    files = set()
    for module in {cls.__module__ for cls in classes}:
        file = sys.modules[module].__file__
        files.update(Path(name) for name in (file, *get_relative_import_files(file)))
    return sorted(files)


def _check_config(config: dict, model_class: type) -> None:
    expected, found = model_class.config_class.model_type, config.get("model_type")
    if found != expected:
        raise ValueError(
            f"config.json is of a model of the type {found!r}; the code of {model_class.__name__} is for {expected!r}. "
            "Save the model in this library's format; transformers' needs no code."
        )
    for name, own in model_class.config_class.sub_configs_defaults.items():
        tower = config.get(name, {}).get("model_type", own.model_type)
        if tower != own.model_type and tower not in CONFIG_MAPPING_NAMES:
            raise ValueError(
                f"The {name.partition('_')[0]} tower is a model of the type {tower!r}, which transformers alone does not "
                "know, and remote code cannot bring it along. Publish without the code, for receivers who install "
                "hf_vitfm."
            )
