"""Tokenizers learnt from captions, and those that do not fit a text tower."""

import json
import subprocess
import sys

import pytest
from transformers import (
    AutoTokenizer,
    BertConfig,
    CLIPTextConfig,
    GPT2Config,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
)

from hf_vitfm import load_pairs
from hf_vitfm.data.tokenizers import check_tokenizer, train_tokenizer
from tests.data.test_pair_collator import bert_tokenizer, clip_tokenizer, gpt2_tokenizer
from tests.repo.tree import ROOT


CAPTIONS = ["A black cat", "a black dog", ["Two black cats", "another cat"], "the cat's 12 lives", None, "", " "]


@pytest.fixture(scope="module")
def emoji_captions():
    return load_pairs("emoji")["google"]["caption"][:]


def test_texts_are_framed_lower_cased_and_can_be_read_back():
    tokenizer = train_tokenizer(CAPTIONS, 300, 16)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    ids = tokenizer("  A  BLACK\ncat ").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == tokenizer("a black cat").input_ids and len(ids) == 5
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a black cat"
    assert tokenizer.convert_ids_to_tokens(ids)[1:-1] == ["Ġa", "Ġblack", "Ġcat"]


def test_special_tokens_have_the_highest_ids_and_the_end_the_highest_of_all():
    tokenizer = train_tokenizer(CAPTIONS, 270, 16)
    size = len(tokenizer)
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [size - 3, size - 2, size - 1]
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    batch = tokenizer(["a", "a black cat"], padding=True).input_ids
    assert batch[0][-1] == tokenizer.pad_token_id


def test_any_text_can_be_written():
    tokenizer = train_tokenizer(["x"], 259, 16)
    for text in ("漢字 é 🙂", "\x00\x7f", "<|endoftext|", "ｆｕｌｌ"):
        ids = tokenizer(text, split_special_tokens=True).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True)[1:] == text
        assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)


def test_tokens_are_those_of_gpt2s_tokenizer_with_the_same_merges(emoji_captions):
    tokenizer = train_tokenizer(emoji_captions, 600, 32)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    theirs = GPT2Tokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]], add_prefix_space=True)
    assert len(model["merges"]) == 600 - 259
    for caption in emoji_captions[::20]:
        assert tokenizer(caption).input_ids[1:-1] == theirs(caption.lower()).input_ids


def test_a_vocabulary_has_the_size_asked_for_and_shortens_texts(emoji_captions):
    small, large = (train_tokenizer(emoji_captions, size, 77) for size in (300, 1500))
    assert (len(small), len(large)) == (300, 1500)
    lengths = [sum(map(len, tokenizer(emoji_captions).input_ids)) for tokenizer in (small, large)]
    assert lengths[1] < 0.6 * lengths[0]
    assert len(train_tokenizer(["abc abc"], 5000, 16)) < 270


def test_the_same_captions_give_the_same_tokenizer_in_any_order_and_process(emoji_captions):
    def text(captions):
        return train_tokenizer(captions, 700, 32).backend_tokenizer.to_str()

    once = text(emoji_captions)
    assert text(emoji_captions[::-1]) == once
    code = (
        "from hf_vitfm import load_pairs; from hf_vitfm.data.tokenizers import train_tokenizer; "
        "print(train_tokenizer(load_pairs('emoji')['google']['caption'], 700, 32).backend_tokenizer.to_str())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == once, done.stderr


def test_it_is_saved_and_loaded_by_auto_tokenizer(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, 300, 16)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["A BLACK cat <|endoftext|>", "漢"]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    assert (loaded.model_max_length, loaded.pad_token, loaded.eos_token_id) == (16, "<|pad|>", tokenizer.eos_token_id)
    assert len(loaded("cat " * 99, truncation=True).input_ids) == 16


@pytest.mark.parametrize(
    ("captions", "vocab_size", "context_length", "message"),
    [
        (["a"], 258, 16, "`vocab_size` must be at least 259, .*; got 258"),
        (["a"], 300, 2, "`context_length` must be at least 3: .*; got 2"),
        ([], 300, 16, "`captions` must hold at least one caption; got none"),
        ([None, "", []], 300, 16, "`captions` must hold at least one caption; got none"),
        (["a", 5], 300, 16, r"caption 1 is 5 \(int\)"),
        (["a", ["b", b"c"]], 300, 16, r"caption 1 is b'c' \(bytes\)"),
        (["a", "\ud800"], 300, 16, r"caption 1 is '\\ud800'"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_refused(captions, vocab_size, context_length, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(captions, vocab_size, context_length)


# Does it fit


def text_config(**fields):
    return CLIPTextConfig(**{"vocab_size": 514, "eos_token_id": 513, "max_position_embeddings": 77} | fields)


@pytest.mark.parametrize(
    ("tokenizer", "config"),
    [
        (clip_tokenizer(), text_config()),
        (clip_tokenizer(), text_config(vocab_size=576)),  # a table with rows to spare
        (clip_tokenizer(), text_config(eos_token_id=2)),  # of old: the end token is the one with the highest id
        (bert_tokenizer(), BertConfig(vocab_size=13)),
        (gpt2_tokenizer(), GPT2Config(vocab_size=257, eos_token_id=256, n_positions=32)),
        (gpt2_tokenizer(), GPT2Config(vocab_size=257, eos_token_id=[256, 5])),
    ],
)
def test_a_tokenizer_that_fits_is_accepted(tokenizer, config):
    check_tokenizer(tokenizer, config)


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (clip_tokenizer, text_config(vocab_size=513), "ids up to 513, .* `vocab_size` = 513 .*`vocab_size=514`"),
        (clip_tokenizer, text_config(eos_token_id=500), "`eos_token_id` = 513, .* says 500.*`eos_token_id=513`"),
        (gpt2_tokenizer, GPT2Config(vocab_size=257, eos_token_id=[1, 5]), r"`eos_token_id` = 256, .* says \[1, 5\]"),
        (bert_tokenizer, text_config(), "`eos_token_id` = None, .* says 513"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_an_error_that_says_what_to_do(build, config, message):
    with pytest.raises(ValueError, match=message):
        check_tokenizer(build(), config)


def test_a_tokenizer_of_longer_texts_than_the_tower_takes_is_an_error():
    tokenizer = train_tokenizer(CAPTIONS, 300, 78)
    config = text_config(eos_token_id=tokenizer.eos_token_id)
    with pytest.raises(ValueError, match=r"`model_max_length` = 78 .* `max_position_embeddings` = 77.*length = 77`"):
        check_tokenizer(tokenizer, config)
    tokenizer.model_max_length = 77
    check_tokenizer(tokenizer, config)


def test_tokens_that_were_added_are_counted():
    tokenizer = clip_tokenizer()
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="ids up to 514"):
        check_tokenizer(tokenizer, text_config())
    check_tokenizer(tokenizer, text_config(vocab_size=515))
    with pytest.raises(ValueError, match=r"pools at the highest id .* the id 513 of 0\.\.514.*`eos_token_id=513`"):
        check_tokenizer(tokenizer, text_config(vocab_size=515, eos_token_id=2))
