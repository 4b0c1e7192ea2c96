"""Captions in batches, with the tokenizers of CLIP, BERT and GPT-2."""

import logging
import pickle

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch.utils.data import DataLoader
from transformers import BertTokenizer, CLIPTokenizer, GPT2Tokenizer

from hf_vitfm.data.order import ImageView
from hf_vitfm.data.pair_collator import PairCollator
from hf_vitfm.data.tokenizers import train_tokenizer
from tests.data.images import grey_png
from tests.data.test_pairs import still


BYTES = sorted(ByteLevel.alphabet())
TEXTS = ["a cat", "a dog and another dog", "x", "two cats"]


def clip_tokenizer():
    tokens = [*BYTES, *(byte + "</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [])


def bert_tokenizer():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "and", "another", "two", "##s", "x"]
    return BertTokenizer({token: i for i, token in enumerate(tokens)})


def gpt2_tokenizer():
    return GPT2Tokenizer({token: i for i, token in enumerate([*BYTES, "<|endoftext|>"])}, [])


TOKENIZERS = pytest.mark.parametrize("build", [clip_tokenizer, bert_tokenizer, gpt2_tokenizer])


def pixels(value=0.0):
    return torch.full((3, 4, 4), value)


def rows_of(captions):
    return [{"pixel_values": pixels(i), "caption": caption, "sample_seed": i} for i, caption in enumerate(captions)]


@TOKENIZERS
@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_and_mask_are_those_of_the_tokenizer(build, padding, side):
    tokenizer = build()
    tokenizer.padding_side = side
    batch = PairCollator(tokenizer, 6, padding)(rows_of(TEXTS))
    theirs = build()
    theirs.padding_side = side
    theirs.pad_token = theirs.pad_token or theirs.eos_token
    expected = theirs(TEXTS, padding=padding, truncation=True, max_length=6, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected.input_ids)
    assert torch.equal(batch["attention_mask"], expected.attention_mask)
    assert torch.equal(batch["pixel_values"], torch.stack([pixels(i) for i in range(4)]))
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}


def test_padding_goes_to_the_longest_of_the_batch_or_to_the_full_length():
    assert PairCollator(clip_tokenizer(), 20)(rows_of(["x", "yyy"]))["input_ids"].shape == (2, 5)
    assert PairCollator(clip_tokenizer(), 20, "max_length")(rows_of(["x", "yyy"]))["input_ids"].shape == (2, 20)


@pytest.mark.parametrize(("build", "last"), [(clip_tokenizer, 513), (bert_tokenizer, 3)])
def test_a_caption_that_is_cut_keeps_its_end_token(build, last):
    batch = PairCollator(build(), 5)(rows_of(["cat " * 10_000, "x"]))
    assert batch["input_ids"].shape == (2, 5)
    assert batch["input_ids"][0, -1] == last
    assert batch["attention_mask"].sum(1).tolist() == [5, 3]


def test_cut_captions_are_counted_and_reported_once(caplog):
    collator = PairCollator(clip_tokenizer(), 5)
    with caplog.at_level(logging.WARNING):
        collator(rows_of(["xyz"]))
        assert collator.num_truncated == 0 and not caplog.records
        for _ in range(3):
            collator(rows_of(["four", "fives", "six"]))
    assert collator.num_truncated == 6
    (record,) = caplog.records
    assert record.message.startswith("A caption has 6 tokens, and the text tower takes 5")


def test_cut_captions_of_all_workers_are_counted():
    rows = [
        {"image": grey_png(i), "caption": "long " * (i % 3)} | ({} if i % 3 else {"caption": "x"}) for i in range(30)
    ]
    collator = PairCollator(clip_tokenizer(), 4)
    loader = DataLoader(ImageView(rows, still, 0, captions=True), batch_size=2, num_workers=2, collate_fn=collator)
    batches = [batch["input_ids"] for batch in loader]
    assert collator.num_truncated == 20
    again = DataLoader(loader.dataset, batch_size=2, collate_fn=PairCollator(clip_tokenizer(), 4))
    assert all(torch.equal(ids, batch["input_ids"]) for ids, batch in zip(batches, again, strict=True))


def test_special_tokens_that_a_caption_spells_out_are_text():
    clip, bert = (PairCollator(build(), 77) for build in (clip_tokenizer, bert_tokenizer))
    ids = clip.tokenize(["a<|endoftext|>b<|startoftext|>"])["input_ids"][0].tolist()
    assert (ids.count(512), ids.count(513), ids[0], ids[-1]) == (1, 1, 512, 513)
    cut = PairCollator(clip_tokenizer(), 8).tokenize(["a<|endoftext|>" + " cat" * 9])["input_ids"][0].tolist()
    assert (cut.count(513), cut[-1], len(cut)) == (1, 513, 8)
    ids = bert.tokenize(["cat [SEP] [PAD] dog"])["input_ids"][0].tolist()
    assert (ids.count(2), ids.count(3), ids.count(0), ids[-1]) == (1, 1, 0, 3)


def test_the_tokenizer_of_the_caller_stays_as_it_is(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300, 16)
    tokenizer.save_pretrained(tmp_path / "before")
    PairCollator(tokenizer, 4)(rows_of(["a text that is cut <|endoftext|>"]))
    tokenizer.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "tokenizer.json").read_text() for name in ("before", "after"))
    assert before == after
    assert tokenizer("<|endoftext|>").input_ids.count(tokenizer.eos_token_id) == 2


def test_all_captions_of_an_evaluation_come_with_the_place_of_their_image():
    collator = PairCollator(clip_tokenizer(), 77)
    batch = collator(rows_of([["a", "bb"], [], ["c"], ["d", "e", "f"]]))
    assert batch["pixel_values"].shape[0] == 4
    assert batch["text_to_image"].tolist() == [0, 0, -1, 2, 3, 3, 3]
    assert torch.equal(batch["input_ids"], collator.tokenize(["a", "bb", "", "c", "d", "e", "f"])["input_ids"])
    assert collator(rows_of([[]]))["text_to_image"].tolist() == [-1]


@TOKENIZERS
def test_every_text_has_a_token_to_look_at(build):
    batch = PairCollator(build(), 8)(rows_of([[], ["\x00\u200b"], ["x"]]))
    assert batch["attention_mask"].any(1).all()


def test_the_collator_goes_to_other_processes():
    collator = pickle.loads(pickle.dumps(PairCollator(clip_tokenizer(), 9)))
    assert torch.equal(
        collator(rows_of(["x"]))["input_ids"], PairCollator(clip_tokenizer(), 9)(rows_of(["x"]))["input_ids"]
    )


@pytest.mark.parametrize("captions", [[None], ["a", None], ["a", ["b"]], [["a"], "b"], [5]])
def test_rows_without_captions_are_named(captions):
    with pytest.raises(ValueError, match=rf"row {len(captions) - 1} of the batch has .*`captions=True`"):
        PairCollator(clip_tokenizer(), 9)(rows_of(captions))


def test_settings_that_are_impossible_are_refused():
    with pytest.raises(ValueError, match="`padding` must be one of longest, max_length; got 'batch'"):
        PairCollator(clip_tokenizer(), 9, "batch")
    with pytest.raises(ValueError, match="`context_length` must be at least 3, .*; got 2"):
        PairCollator(clip_tokenizer(), 2)
    bare = gpt2_tokenizer()
    bare.eos_token = None
    with pytest.raises(ValueError, match="neither a padding token nor an end token"):
        PairCollator(bare, 9)
    with pytest.raises(ValueError, match="at least one row"):
        PairCollator(clip_tokenizer(), 9)([])
