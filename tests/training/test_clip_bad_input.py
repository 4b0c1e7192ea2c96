"""Pairs that cannot be learnt from: rows are named or left out, long captions cut, shards that end too early refused."""

import logging
import math

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPProcessor

from hf_vitfm import CLIPTrainer, load_pairs, open_stream
from hf_vitfm.data.decode import BadImageError
from hf_vitfm.data.tokenizers import train_tokenizer
from tests.data.images import encode, noise, write_tar
from tests.training.clip_runs import make_args, make_model


WORDS = "red green blue dog cat bird on under beside a the".split()
BAD = {
    "no caption": {"caption": None},
    "a number": {"caption": 5},
    "no image": {"image": {"bytes": b"no", "path": "x.png"}},
}
CONTEXT, VOCABULARY = 12, 320  # all of `make_rows` fit


def make_rows(count: int = 20) -> list[dict]:
    """Rows with an encoded image and a caption of three words, each another one."""
    places = [(i, 3 * i + i // len(WORDS), 7 * i) for i in range(count)]
    captions = [" ".join(WORDS[place % len(WORDS)] for place in row) for row in places]
    assert len(set(captions)) == count
    images = [{"bytes": encode(noise(seed=i)), "path": f"{i}.png"} for i in range(count)]
    return [{"image": image, "caption": caption} for image, caption in zip(images, captions, strict=True)]


def make_trainer(directory, rows, eval_rows=None, **options) -> CLIPTrainer:
    tokenizer = train_tokenizer([row["caption"] for row in make_rows()], vocab_size=VOCABULARY, context_length=CONTEXT)
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": tokenizer.eos_token_id}
    images = CLIPImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    return CLIPTrainer(
        model=make_model(torch.float32, text=text),
        args=make_args(directory, learning_rate=0.01, **options),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=CLIPProcessor(images, tokenizer),
    )


@pytest.mark.parametrize("kind", BAD)
def test_by_default_a_bad_row_ends_the_run_and_is_named(tmp_path, kind):
    rows = make_rows(8)
    rows[3] |= BAD[kind]
    name = r"^row 3 \((3|x)\.png\) (has no caption to learn from|cannot be decoded)"
    with pytest.raises(BadImageError, match=name):
        make_trainer(tmp_path, rows).train()
    with pytest.raises(BadImageError, match=name):
        make_trainer(tmp_path, make_rows(), rows).evaluate()


@pytest.mark.parametrize("cache", [{}, {"grad_cache_chunk_size": 2}], ids=["at once", "cached"])
def test_bad_rows_are_skipped_told_and_left_out_of_the_metrics(tmp_path, caplog, cache):
    rows, good = make_rows(), make_rows()
    for place, change in zip((2, 5, 11), BAD.values(), strict=True):
        rows[place] |= change
    trainer = make_trainer(tmp_path, rows, rows, on_bad_image="skip", max_steps=5, **cache)
    with caplog.at_level(logging.WARNING):
        trainer.train()
        metrics = trainer.evaluate()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 5 and all(map(math.isfinite, losses))
    told = [record.message for record in caplog.records if "were skipped" in record.message]
    names = "row 2 (2.png), row 5 (5.png), row 11 (x.png)"
    assert told == [f"3 of 20 images were skipped in {stage}: {names}" for stage in ("training", "evaluation")]
    expected = trainer.evaluate([row for i, row in enumerate(good) if i not in (2, 5, 11)])
    for name, value in expected.items():
        if "recall" in name or "rank" in name:
            assert metrics[name] == pytest.approx(value), name


def test_long_captions_are_cut_before_their_end_token_counted_and_told_once(tmp_path, caplog):
    rows = make_rows(16)
    long = [0, 3, 4, 9]
    for place in long:
        rows[place]["caption"] = " ".join(WORDS * 3)
    trainer = make_trainer(tmp_path, rows, rows, max_steps=2)  # one epoch
    seen = []
    trainer.model.text_model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"]), with_kwargs=True
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
        assert trainer.data_collator.num_truncated == len(long)
        trainer.evaluate()
    assert trainer.data_collator.num_truncated == 2 * len(long)
    assert len([record for record in caplog.records if "are cut" in record.message]) == 1
    end = trainer.model.config.text_config.eos_token_id
    assert all(((batch == end).sum(dim=1) >= 1).all() and batch.shape[1] == CONTEXT for batch in seen)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_shard_that_is_cut_off_is_named_before_training(tmp_path, streaming):
    for shard in range(2):
        rows = make_rows(8)[4 * shard : 4 * shard + 4]
        members = {f"{i}.png": row["image"]["bytes"] for i, row in enumerate(rows)}
        write_tar(
            tmp_path / f"train-{shard}.tar", members | {f"{i}.txt": row["caption"] for i, row in enumerate(rows)}
        )
    if streaming:
        rows = open_stream(str(tmp_path), window=4)
        make_trainer(tmp_path / "out", rows, max_steps=1, per_device_train_batch_size=4).train()
    whole = (tmp_path / "train-1.tar").read_bytes()
    (tmp_path / "train-1.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match=r"train-1\.tar"):
        open_stream(str(tmp_path)) if streaming else load_pairs(str(tmp_path))
