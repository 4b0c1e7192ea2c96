"""transformers' Auto classes and its zero-shot pipeline find our CLIP, its processor and its towers."""

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline

from hf_vitfm import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from tests.data.images import noise
from tests.tiny import tiny_clip


WORDS = ["a", "photo", "of", "this", "is", "cat", "dog", "elk", "."]


@pytest.fixture
def processor():
    """Words instead of byte pairs, and small images."""
    vocabulary = {word: number + 2 for number, word in enumerate(WORDS)} | {
        "[UNK]": 0,
        "[PAD]": 1,
        "[BOS]": 58,
        "[EOS]": 59,
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", None, [("[BOS]", 58), ("[EOS]", 59)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", model_max_length=12)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.CLIPProcessor(images, fast)


@pytest.fixture
def folder(tmp_path, processor):
    tiny_clip().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def picture():
    return Image.fromarray(noise(40, 50))


def test_auto_classes_give_ours(folder, tmp_path):
    assert type(AutoModel.from_pretrained(folder)) is CLIPModel
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(folder)) is CLIPModel
    assert type(AutoProcessor.from_pretrained(folder)) is transformers.CLIPProcessor
    for backend, name in (("torchvision", "CLIPImageProcessor"), ("pil", "CLIPImageProcessorPil")):
        assert type(transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)).__name__ == name
    for model_class in (CLIPTextModel, CLIPVisionModel):
        model_class.from_pretrained(folder).save_pretrained(tmp_path / model_class.__name__)
        assert type(AutoModel.from_pretrained(tmp_path / model_class.__name__)) is model_class


def test_model_types_name_the_processors_where_no_file_does():
    mapping = transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING
    assert mapping[CLIPConfig] is mapping[CLIPTextConfig] is transformers.CLIPTokenizer
    images = transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING
    assert images[CLIPConfig]["pil"] is images[CLIPVisionConfig]["pil"] is transformers.CLIPImageProcessorPil
    assert transformers.models.auto.processing_auto.PROCESSOR_MAPPING[CLIPConfig] is transformers.CLIPProcessor


@torch.no_grad()
def test_zero_shot_pipeline_works_from_a_folder(folder, processor, picture):
    labels = ["cat", "dog", "elk"]
    texts = [f"This is a photo of {label}." for label in labels]
    inputs = processor(text=texts, images=picture, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    expected = CLIPModel.from_pretrained(folder)(**inputs).logits_per_image.softmax(dim=-1)[0]
    answers = pipeline("zero-shot-image-classification", model=str(folder))(picture, candidate_labels=labels)
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert [scores[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)
    assert max(scores.values()) - min(scores.values()) > 1e-3  # the labels are told apart
