"""The recipe that draws reconstructions: its images, its checkpoints, and what it refuses."""

import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_vitfm import ViTForImageClassification, export_checkpoint
from hf_vitfm.data.decode import BadImageError
from recipes.mae import reconstruct
from tests.data.images import noise
from tests.tiny import tiny_config, tiny_mae


@pytest.fixture
def checkpoint(tmp_path):
    """A folder in this library's format."""
    return save(tiny_mae(), tmp_path / "mae")


def save(model, folder) -> str:
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def draw(checkpoint, images, output, *argv: str) -> bytes:
    options = [
        "--checkpoint",
        checkpoint,
        "--images",
        *images,
        "--output",
        str(output),
        "--mask_ratios",
        "0.5",
        "0.75",
    ]
    path = reconstruct.main([*options, *argv])
    with Image.open(path) as image:
        assert image.format == "PNG"
    return path.read_bytes()


def height(content_path) -> int:
    with Image.open(content_path) as image:
        return image.size[1]


def test_files_folders_and_samples(checkpoint, tmp_path, capsys):
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    names = ["a.png", "b.jpg", "more/c.png"]
    for name in names:
        Image.fromarray(noise(40, 30)).save(tmp_path / "pictures" / name)
    heights = {}
    for count, images in {
        1: [str(tmp_path / "pictures" / "a.png")],
        3: [str(tmp_path / "pictures")],
        4: ["fashion-mnist"],
    }.items():
        draw(checkpoint, images, tmp_path / "out" / "grid.png", "--count", "4")
        assert f"{count} images" in capsys.readouterr().out
        heights[count] = height(tmp_path / "out" / "grid.png")
    assert heights[3] - heights[1] == pytest.approx(2 * 264, abs=2)
    assert heights[4] - heights[3] == pytest.approx(264, abs=2)


def test_the_seed_chooses_images_and_masks(checkpoint, tmp_path):
    first, again, other = (
        draw(checkpoint, ["emoji"], tmp_path / "grid.png", "--count", "2", "--seed", seed) for seed in ("0", "0", "1")
    )
    assert first == again != other
    assert reconstruct.choose(10, 20, seed=0) == list(range(10))
    assert len(set(reconstruct.choose(1000, 8, seed=0))) == 8


def test_transformers_format_gives_the_same_picture_and_asks_about_the_target(checkpoint, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    save(tiny_mae(), theirs)
    export_checkpoint(tiny_mae(), theirs)
    ours = draw(checkpoint, ["emoji"], tmp_path / "grid.png", "--count", "1")
    assert "norm_pix_loss" not in capsys.readouterr().out
    assert draw(str(theirs), ["emoji"], tmp_path / "grid.png", "--count", "1") == ours
    assert "--norm_pix_loss true" in capsys.readouterr().out
    normalized = draw(str(theirs), ["emoji"], tmp_path / "grid.png", "--count", "1", "--norm_pix_loss", "true")
    assert "--norm_pix_loss" not in capsys.readouterr().out
    assert normalized != ours
    save(tiny_mae(norm_pix_loss=True), tmp_path / "said")
    assert draw(str(tmp_path / "said"), ["emoji"], tmp_path / "grid.png", "--count", "1") == normalized


def test_another_size(checkpoint, tmp_path):
    small = draw(checkpoint, ["emoji"], tmp_path / "grid.png", "--count", "1")
    assert draw(checkpoint, ["emoji"], tmp_path / "grid.png", "--count", "1", "--image_size", "64") != small


def test_what_is_no_image_or_no_autoencoder_is_named(checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadImageError, match=r"notes\.txt"):
        draw(checkpoint, [str(tmp_path / "notes.txt")], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="No images"):
        draw(checkpoint, [str(tmp_path / "empty")], tmp_path / "grid.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        draw(checkpoint, [str(tmp_path / "nothing.png")], tmp_path / "grid.png")
    encoder = save(tiny_mae().vit, tmp_path / "encoder")
    with pytest.raises(ValueError, match="encoder alone"):
        draw(encoder, ["emoji"], tmp_path / "grid.png")
    classifier = save(ViTForImageClassification(tiny_config()), tmp_path / "classifier")
    with pytest.raises(ValueError, match="cannot read"):
        draw(classifier, ["emoji"], tmp_path / "grid.png")
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--mask_ratios", "1.0", "in \\[0, 1\\)"), ("--count", "0", "at least 1"), ("--output", "grid.jpg", "PNG")],
)
def test_wrong_options_are_refused_before_anything_is_loaded(option, value, message):
    with pytest.raises(ValueError, match=message):
        reconstruct.main(["--checkpoint", "nowhere", "--images", "nothing", option, value])
