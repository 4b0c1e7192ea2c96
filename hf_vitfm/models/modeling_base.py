"""What all models share: initialisation, loading from any source, and resizing of positions at load."""

import copy
import difflib
import importlib.util
import logging
import os
import re
import threading
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_base import as_pair
from .modeling_embeddings import PositionTable
from .modeling_encoder import LayerScale


# Loading arguments that decide which file is read, so every reader needs them.
SOURCE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def _is_library_there() -> bool:
    """Whether there is more of the library than this file and its siblings, which travel to the Hub as remote code."""
    try:
        return importlib.util.find_spec("hf_vitfm") is not None
    except ImportError:
        return False


@contextmanager
def _explain_unknown_arguments(model_class):
    """Turns the TypeError about an unknown argument, raised deep inside the loading, into one that says what to do."""
    try:
        yield
    except TypeError as error:
        found = re.search(
            rf"{model_class.__name__}.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
        )
        if not found:
            raise
        near = difflib.get_close_matches(found[1], model_class.config_class.field_names(), n=1)
        hint = f"Did you mean `{near[0]}`?" if near else "See the configuration's docstring for the fields."
        raise ValueError(f"`{found[1]}` is neither a configuration field nor a loading argument. {hint}") from error


@contextmanager
def _hold_report_back():
    """Holds back transformers' table of weights that do not fit: an error of ours says the same, and shows it not."""
    held, thread = [], threading.get_ident()

    def is_shown(record: logging.LogRecord) -> bool:
        is_report = record.thread == thread and "LOAD REPORT" in record.getMessage()
        if is_report:
            held.append(record)
        return not is_report

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_shown)
    try:
        yield
    except ValueError:
        held.clear()
        raise
    finally:
        logger.removeFilter(is_shown)
        for record in held:
            logger.handle(record)


def _describe_mismatch(source, mismatched) -> str:
    rows = sorted(mismatched)
    shown = "; ".join(f"{key}: {tuple(saved)} saved, {tuple(built)} in the model" for key, saved, built in rows[:5])
    return (
        f"{len(rows)} weights of {str(source)!r} do not fit the model: {shown}. Correct the overrides (`num_labels`, "
        "`patch_size`, ...), or pass `ignore_mismatched_sizes=True` to initialise these weights anew."
    )


class WeightMismatchError(ValueError, RuntimeError):
    """Weights of a file have other shapes than the model's; a RuntimeError too, as transformers raises one."""


def _vision_part(config, saved: dict) -> tuple:
    """The configuration of what sees images, and what was saved of it; None and {} where that is not ours."""
    if hasattr(config, "vision_config"):
        config, saved = config.vision_config, saved.get("vision_config") or {}
    return (config, saved) if hasattr(config, "position_interpolation") else (None, {})


def _load_at_saved_size(source, config, saved: dict):
    """Set a configuration to the image size that a file was saved at, for its positions fit no other.

    Resizing after the loading works for any file layout, device map and dtype.

    Returns:
        The size to resize to after the loading, None if that is the saved one.
    """
    if config is None:
        return None
    default = type(config).__dataclass_fields__["position_embedding_type"].default
    if config.position_embedding_type == "sincos" != saved.get("position_embedding_type", default):
        raise ValueError(
            f"{str(source)!r} has learned positions, which `position_embedding_type='sincos'` cannot turn into the "
            "fixed table. Leave the field out, or build a new model from a configuration."
        )
    image_size, saved_size = config.image_size, saved.get("image_size", config.image_size)
    if as_pair(image_size) == as_pair(saved_size):
        return None
    config.image_size = saved_size
    return image_size


# Arguments of `save_pretrained(..., push_to_hub=True)` that are those of the push.
_OF_A_PUSH = (
    "repo_id",
    "private",
    "revision",
    "commit_message",
    "commit_description",
    "create_pr",
    "tags",
    "processing_class",
    "formats",
    "remote_code",
)


class VitfmPreTrainedModel(PreTrainedModel):
    """Base of all models of this library."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _input_embed_layer = "patch_embeddings"
    accepts_loss_kwargs = True  # the heads divide by Trainer's `num_items_in_batch`
    _no_split_modules = ["VisionEmbeddings", "EncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        """Initialise one module's own parameters; containers without parameters are never passed here."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            self._init_dense(module)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            init.constant_(module.weight, module.initial_value)
        elif isinstance(module, PositionTable):
            self._init_tokens(module)

    def _init_tokens(self, module: PositionTable) -> None:
        std, jax = self.config.initializer_range, self.config.weight_init == "jax"
        if module.is_learned:
            init.trunc_normal_(module.position_embeddings, std=std)
        else:
            init.copy_(module.position_embeddings, module.initial_positions())
        if module.cls_token is not None:
            init.zeros_(module.cls_token) if jax else init.trunc_normal_(module.cls_token, std=std)
        # Never zeros: prefix tokens that begin equal get equal gradients, and stay equal for ever.
        for token in (module.distillation_token, module.register_tokens):
            if token is not None:
                init.trunc_normal_(token, std=std)

    def _init_dense(self, module: nn.Linear | nn.Conv2d) -> None:
        std, jax = self.config.initializer_range, self.config.weight_init == "jax"
        head_init = getattr(module, "head_init", None)  # set on the leaf that is a head
        if head_init == "zeros":
            init.zeros_(module.weight)
        elif head_init == "trunc_normal":
            init.trunc_normal_(module.weight, std=2e-5)
        elif not jax:
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv2d):  # flax's default: LeCun normal, truncated at two standard deviations
            fan_in = module.weight[0].numel()
            std = fan_in**-0.5 / 0.87962566
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        else:  # Xavier over each of the fused matrices alone
            fan_out = module.out_features // getattr(module, "num_fused", 1)
            bound = (6 / (module.in_features + fan_out)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            if jax and getattr(module, "is_mlp", False):
                init.normal_(module.bias, std=1e-6)
            else:
                init.zeros_(module.bias)

    def resize_position_embeddings(self, image_size) -> None:
        """Resize the position embeddings for another image size and note it in the configuration.

        Args:
            image_size: pixels, one number or (height, width); a multiple of the patch size.
        """
        for module in self.modules():
            if isinstance(module, PositionTable):
                module.resize(image_size)
                module.config.image_size = image_size if isinstance(image_size, int) else as_pair(image_size)

    @classmethod
    def on_meta_device(cls, config):
        """A model of shapes without values, which takes no memory."""
        with torch.device("meta"), init.no_init_weights(), init.meta_device_safe_creation_ops():
            return cls(config)

    @classmethod
    @_hold_report_back()
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load a model from a Hub id, a folder or a weight file, ours or a foreign format that `hf_vitfm.conversion` reads.

        Takes all arguments of transformers' method, and `source_format`, which names the format to read where a source
        has several or is not recognised. Fields of the configuration can be given as keywords; with
        `image_size` the position embeddings are resized at load, by the interpolation that the configuration names.
        A `num_labels` that differs from the checkpoint's needs `ignore_mismatched_sizes=True`: it makes a new head, and
        drops a pre-logits layer as the ViT paper does for fine-tuning (unless `representation_size` is given too).

        Raises:
            ValueError: for an argument that is neither a configuration field nor a loading argument, a source whose
                format is not known, or weights that are missing.
            WeightMismatchError: for weights whose shapes do not fit.
        """
        source = pretrained_model_name_or_path
        if source is None:
            loaded = super().from_pretrained(None, *model_args, config=config, **kwargs)
            cls._freeze_tables(loaded[0] if isinstance(loaded, tuple) else loaded)
            return loaded
        # By type name, not class: as remote code from a folder, this file and the configuration's are loaded apart.
        if config is not None and getattr(config, "model_type", None) != cls.config_class.model_type:
            config = cls.config_class.from_pretrained(config)
        config = copy.deepcopy(config)  # the caller's stays as it is
        overrides = {name: kwargs.pop(name) for name in cls.config_class.field_names() if name in kwargs}
        where = {name: kwargs[name] for name in SOURCE_ARGUMENTS if name in kwargs}
        given = {**({} if config is None else config.to_dict()), **overrides}
        saved, state_dict = cls._read(source, kwargs.pop("source_format", None), given, where)
        foreign = state_dict is not None
        if config is None:
            config = cls.config_class.from_dict(saved, **overrides)
        elif overrides:
            config = cls.config_class.from_dict(config.to_dict(), **overrides)
        image_size = _load_at_saved_size(source, *_vision_part(config, saved))
        if foreign:
            for name in where:
                kwargs.pop(name)
            kwargs["state_dict"] = state_dict
        wants_info = kwargs.pop("output_loading_info", False)
        allow_mismatch = kwargs.pop("ignore_mismatched_sizes", False)
        with _explain_unknown_arguments(cls):
            model, info = super().from_pretrained(
                None if foreign else source,
                *model_args,
                config=config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **kwargs,
            )
        if any(name.endswith(".running_mean") for name in info["unexpected_keys"]):
            raise ValueError(
                f"{str(source)!r} is a checkpoint on the way of a linear probe, whose batch norm {cls.__name__} has no "
                "place for. Resume the run from it; the finished model is in the run's output folder."
            )
        if info["mismatched_keys"] and not allow_mismatch:
            raise WeightMismatchError(_describe_mismatch(source, info["mismatched_keys"]))
        if info["missing_keys"]:
            cls._refuse_half(source, model, saved, info["missing_keys"])
        model.name_or_path = model.config._name_or_path = str(source)
        if image_size is not None:
            model.resize_position_embeddings(image_size)
        cls._freeze_tables(model)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """Save as transformers does; with `push_to_hub` then publish as that method does: private unless told otherwise.

        Args:
            save_directory: folder.
            *args: of transformers' method.
            push_to_hub: publish it too, as `repo_id` or under the folder's name.
            **kwargs: of transformers' method and, with `push_to_hub`, of that method.
        """
        sent = {name: kwargs.pop(name) for name in _OF_A_PUSH if push_to_hub and name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        if push_to_hub and kwargs.get("is_main_process", True):
            token = {"token": kwargs["token"]} if "token" in kwargs else {}
            self.push_to_hub(sent.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **token, **sent)

    def push_to_hub(self, repo_id: str, **kwargs):
        """Publish the model as `hf_vitfm.push_to_hub` does, with its card and preprocessing, private unless told otherwise.

        Args:
            repo_id: owner and name.
            **kwargs: what `hf_vitfm.push_to_hub` takes: `processing_class`, `private`, `formats`, `token`, ... Of those of
                transformers' method, `create_pr`, `tags`, `max_shard_size` and `commit_description` are refused.

        Returns:
            The commit.
        """
        try:
            hub = importlib.import_module("hf_vitfm.hub.push")
        except ImportError:  # remote code where the library is not installed
            return super().push_to_hub(repo_id, **kwargs)
        return hub.push_model(self, repo_id, **kwargs)

    @classmethod
    def _refuse_half(cls, source, model, saved: dict, missing) -> None:
        """Refuse a checkpoint that lacks weights which the saved configuration calls for.

        Weights that only the overrides of this load call for are new, and so is a head on a checkpoint without one.
        """
        expected = set(cls.on_meta_device(cls.config_class.from_dict(saved)).state_dict())
        if model.base_model is not model and cls.__name__ not in (saved.get("architectures") or ()):
            expected = {name for name in expected if name.startswith(f"{cls.base_model_prefix}.")}
        tables = {  # that are computed
            f"{name}.position_embeddings"
            for name, module in model.named_modules()
            if isinstance(module, PositionTable) and not module.is_learned
        }
        lost = sorted((expected & set(missing)) - tables)
        if lost:
            raise ValueError(
                f"{len(lost)} weights are missing in {str(source)!r}: {', '.join(lost[:5])}. The files are damaged or "
                "their configuration belongs to others; fetch them again."
            )

    @staticmethod
    def _freeze_tables(model) -> None:
        """Freeze sine-cosine positions again, since loading makes every tensor trainable."""
        for module in model.modules():
            if isinstance(module, PositionTable):
                module.position_embeddings.requires_grad_(module.is_learned)

    @classmethod
    def _read(cls, source, source_format: str | None, given: dict, where: dict) -> tuple[dict, dict | None]:
        """The saved configuration, and the weights, None where transformers reads them itself."""
        saved = cls._saved_config(source, where)
        if source_format is not None or saved.get("model_type") != cls.config_class.model_type:
            return cls._conversion().read_checkpoint(cls, source, source_format, given, **where)
        if _is_library_there() and not cls._conversion().check_checkpoint(cls, source, saved, **where):
            return cls._conversion().read_checkpoint(cls, source, "hf_vitfm", given, **where)
        return saved, None

    @classmethod
    def _saved_config(cls, source, where: dict) -> dict:
        """The source's config.json as a dictionary, {} where it has none."""
        if os.path.isfile(source):
            return {}
        damaged = f"config.json of {str(source)!r} holds no JSON object. Fetch it again."
        try:
            saved = cls.config_class.get_config_dict(source, **where)[0]
        except OSError:
            if os.path.isfile(os.path.join(source, where.get("subfolder") or "", "config.json")):
                raise
            return {}  # of a foreign format, or not there, which the package for those says
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise OSError(damaged) from error
        if not isinstance(saved, dict):
            raise OSError(damaged)
        return saved

    @classmethod
    def _conversion(cls):
        """The package that reads foreign formats; absent where this file runs as remote code without the library."""
        try:
            return importlib.import_module("hf_vitfm.conversion")
        except ImportError as error:
            raise ImportError(
                f"The source was not saved by {cls.__name__}; reading other formats needs the library: "
                "`pip install hf-vitfm`."
            ) from error
