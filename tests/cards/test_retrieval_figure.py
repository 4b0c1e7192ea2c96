"""The picture of a retrieval: every image and caption in it, in any script."""

import warnings

import numpy as np
import pytest
from PIL import Image

from hf_vitfm.cards.canvas import GREEN, drawable_text
from hf_vitfm.cards.retrieval_figure import FoundCaptions, draw_retrieval


def found(*captions: str, right: int | None = 0) -> FoundCaptions:
    cosines = [0.9 - 0.1 * i for i in range(len(captions))]
    return FoundCaptions(
        captions, cosines, [i == right for i in range(len(captions))], 1 if right == 0 else 17, "its own"
    )


def has_colour(path, colour) -> bool:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == np.array(colour)).all(-1).any())


def test_images_are_drawn_and_a_right_caption_is_green(tmp_path):
    colours = [(255, 0, 0), (0, 0, 255), (200, 0, 200)]
    images = [Image.new("RGB", (16, 16), colour) for colour in colours]
    entries = [found("a", "b"), found("c", "d", right=None), found("e", right=None)]
    path = draw_retrieval(images, entries, tmp_path / "new" / "a.png", total=3)
    green = tuple(int(GREEN[i : i + 2], 16) for i in (1, 3, 5))
    assert all(has_colour(path, colour) for colour in (*colours, green))
    without = draw_retrieval(images[1:], entries[1:], tmp_path / "b.png", total=3)
    assert not has_colour(without, green) and not has_colour(without, colours[0])


def test_captions_of_any_script_and_length_are_drawn_without_a_warning(tmp_path):
    captions = ["\U0001f9ff eye", "猫が好き", "costs $5 and $6", "עברית", "word " * 200, "\n\t", "half \x00 a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = draw_retrieval(
            [Image.new("L", (9, 5))], [found(*captions)], tmp_path / "a.png", total=7, note="by $me$ 猫"
        )
    assert path.stat().st_size > 5_000
    assert drawable_text("\U0001f9ff grün 猫") == "\N{WHITE SMALL SQUARE} grün \N{WHITE SMALL SQUARE}"


def test_what_does_not_fit_is_an_error(tmp_path):
    for images, entries in (([], []), ([Image.new("L", (4, 4))], [])):
        with pytest.raises(ValueError, match="`images` and `found` must be as many"):
            draw_retrieval(images, entries, tmp_path / "a.png", total=1)
