"""Image processors and tokenizers of checkpoints, and the resize to a model's image size."""

import json

import pytest
import transformers
from PIL import Image

from hf_vitfm import ViTForImageClassification, export_checkpoint, load_image_processor, load_tokenizer
from tests.tiny import tiny_config


BACKENDS = pytest.mark.parametrize("backend", ["torchvision", "pil"])
SQUASH = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
SHORT_EDGE_THEN_CROP = transformers.CLIPImageProcessor(
    size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, do_center_crop=True
)
SQUASH_THEN_CROP = transformers.CLIPImageProcessor(
    size={"height": 64, "width": 48}, crop_size={"height": 56, "width": 42}, do_center_crop=True
)
SHORT_EDGE = transformers.CLIPImageProcessor(size={"shortest_edge": 64}, do_center_crop=False)


def shape(processor, size=(90, 70)):
    return tuple(processor(Image.new("RGB", size), return_tensors="pt").pixel_values.shape[2:])


def load(tmp_path, processor, backend="torchvision", **arguments):
    processor.save_pretrained(tmp_path)
    return load_image_processor(tmp_path, backend=backend, **arguments)


@BACKENDS
def test_processor_is_loaded_as_it_was_saved(tmp_path, backend):
    processor = load(tmp_path, SQUASH, backend)
    assert (shape(processor), list(processor.image_mean)) == ((32, 32), [0.1, 0.2, 0.3])
    assert type(processor).__name__ == {"torchvision": "ViTImageProcessor", "pil": "ViTImageProcessorPil"}[backend]


@BACKENDS
@pytest.mark.parametrize(("image_size", "expected"), [(48, (48, 48)), ((48, 24), (48, 24)), ([24, 48], (24, 48))])
def test_squash_takes_the_image_size(tmp_path, backend, image_size, expected):
    processor = load(tmp_path, SQUASH, backend, image_size=image_size)
    assert shape(processor) == expected
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]


@BACKENDS
@pytest.mark.parametrize(
    ("image_size", "crop", "short_edge"), [(112, (112, 112), 128), (28, (28, 28), 32), ((28, 112), (28, 112), 32)]
)
def test_short_edge_keeps_its_proportion_to_the_crop(tmp_path, backend, image_size, crop, short_edge):
    processor = load(tmp_path, SHORT_EDGE_THEN_CROP, backend, image_size=image_size)
    assert processor.size["shortest_edge"] == short_edge
    assert (processor.crop_size["height"], processor.crop_size["width"]) == crop
    assert shape(processor) == crop


@BACKENDS
@pytest.mark.parametrize(
    ("image_size", "crop", "size"), [(112, (112, 112), (128, 128)), ((28, 84), (28, 84), (32, 96))]
)
def test_squashed_sides_keep_their_proportions_to_the_crop(tmp_path, backend, image_size, crop, size):
    processor = load(tmp_path, SQUASH_THEN_CROP, backend, image_size=image_size)
    assert (processor.size["height"], processor.size["width"]) == size
    assert (processor.crop_size["height"], processor.crop_size["width"]) == shape(processor) == crop


@BACKENDS
@pytest.mark.parametrize(("image_size", "expected"), [(48, (48, 61)), ((48, 24), (48, 24))])
def test_short_edge_without_a_crop_takes_a_square_size_only(tmp_path, backend, image_size, expected):
    processor = load(tmp_path, SHORT_EDGE, backend, image_size=image_size)
    assert shape(processor) == expected


def test_processor_of_another_size_survives_saving(tmp_path):
    load(tmp_path, SHORT_EDGE_THEN_CROP, image_size=112).save_pretrained(tmp_path / "again")
    assert shape(load_image_processor(tmp_path / "again")) == (112, 112)


def test_processor_and_model_of_one_folder_fit_each_other(tmp_path):
    ViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
    processor = load(tmp_path, SQUASH, image_size=(48, 24))
    model = ViTForImageClassification.from_pretrained(tmp_path, image_size=(48, 24))
    pixel_values = processor(Image.new("RGB", (90, 70)), return_tensors="pt").pixel_values
    assert model(pixel_values).logits.shape == (1, 5)


@pytest.mark.parametrize("with_model", [True, False])
def test_missing_preprocessor_config_is_an_error_that_says_what_to_do(tmp_path, with_model):
    if with_model:
        ViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"no readable preprocessor_config.json. Save the processor beside the model"):
        load_image_processor(tmp_path)


def test_damaged_preprocessor_config_is_an_error(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(OSError, match="no readable preprocessor_config.json"):
        load_image_processor(tmp_path)


# Tokenizers


NONSENSE = [
    ("size", {"height": 0, "width": 0}),
    ("size", {"height": -5, "width": 16}),
    ("size", {"height": 10**6, "width": 10**6}),
    ("size", "big"),
    ("crop_size", {"height": 0, "width": 0}),
    ("image_std", [0.5, 0.0, 0.5]),
    ("image_std", [-1.0, -1.0, -1.0]),
    ("image_std", "x"),
    ("image_mean", [float("nan")] * 3),
    ("rescale_factor", 0),
    ("rescale_factor", float("inf")),
    ("image_processor_type", "os.system"),
]


@pytest.mark.parametrize(("field", "value"), NONSENSE)
def test_preprocessing_that_no_image_survives_is_refused_when_it_is_loaded(tmp_path, field, value):
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises((OSError, ValueError)) as raised:
        load_image_processor(tmp_path)
    message = str(raised.value)
    assert str(tmp_path) in message and "build" in message and len(message) < 700


@pytest.mark.parametrize(
    "name", ["ViTImageProcessor", "ConvNextImageProcessor", "Siglip2ImageProcessor", "BlipImageProcessor"]
)
def test_sound_preprocessing_of_any_library_model_is_not_refused(tmp_path, name):
    getattr(transformers, name)().save_pretrained(tmp_path)
    assert type(load_image_processor(tmp_path)).__name__.startswith(name)


def clip_tokenizer():
    tokens = {token: i for i, token in enumerate(["a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(tokens, [])


def test_tokenizer_is_loaded_as_it_was_saved(tmp_path):
    clip_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert type(tokenizer) is transformers.CLIPTokenizer
    assert tokenizer("a b").input_ids == clip_tokenizer()("a b").input_ids == [2, 0, 1, 3]


def test_folder_of_a_clip_without_a_tokenizer_gives_no_empty_one(tmp_path):
    transformers.CLIPConfig().save_pretrained(tmp_path)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path)) == 2  # what is guarded against
    with pytest.raises(OSError, match="has no files of a tokenizer. Save the tokenizer beside the model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "null", "{}", '{"version": "1.0", "model": {"type": "nonsense"}}'])
def test_damaged_tokenizer_is_an_error_that_says_what_to_do(tmp_path, content):
    clip_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(OSError, match="has no .*Save the tokenizer beside the model"):
        load_tokenizer(tmp_path)


def test_tokenizer_of_nowhere(tmp_path):
    with pytest.raises(OSError, match="has no tokenizer that can be read"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist. Name a folder"):
        load_tokenizer(tmp_path / "missing")


@pytest.mark.parametrize(
    ("file", "load", "part"),
    [
        ("preprocessor_config.json", load_image_processor, "AutoImageProcessor"),
        ("tokenizer_config.json", load_tokenizer, "AutoTokenizer"),
    ],
)
def test_code_beside_a_processor_is_refused_without_asking(tmp_path, monkeypatch, file, load, part):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "n")
    (tmp_path / file).write_text(json.dumps({"auto_map": {part: "evil.Thing"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit")
    with pytest.raises((ValueError, OSError), match="custom code|no tokenizer that can be read"):
        load(tmp_path)
    assert not asked


@pytest.mark.parametrize("load", (load_image_processor, load_tokenizer))
def test_nobody_can_ask_for_code_of_a_checkpoint(tmp_path, load):
    (tmp_path / "mine.py").write_text("raise SystemExit('code of the checkpoint ran')")
    auto_map = {"AutoImageProcessor": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}
    for name in ("preprocessor_config.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": auto_map}))
    with pytest.raises(ValueError, match="no code of a checkpoint is run"):
        load(tmp_path, trust_remote_code=True)
    with pytest.raises((OSError, ValueError)):
        load(tmp_path)


def test_a_folder_without_a_name_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must name a folder to write into"):
        export_checkpoint(ViTForImageClassification(tiny_config()), "")
    assert not list(tmp_path.iterdir())
