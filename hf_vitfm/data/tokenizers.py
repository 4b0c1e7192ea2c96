"""Tokenizers made from captions, and whether a tokenizer fits a text tower."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .captions import is_text


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
_SPECIAL = (PAD, START, END)
_BYTES = 256
_UNLIMITED = 10**9  # transformers' default of `model_max_length` lies far above


def train_tokenizer(
    captions: Iterable[str | list[str] | None], vocab_size: int, context_length: int
) -> "PreTrainedTokenizerFast":
    """Learn a byte-level BPE vocabulary, of lower-cased text as CLIP's is, that can write any text.

    The same captions give the same vocabulary in any order. The last ids are those of the padding, start and end tokens:
    the end token has the highest, where code that pools at the highest id finds it.

    Args:
        captions: strings or lists of strings, such as `dataset["caption"]`; None and empty ones are passed over.
        vocab_size: the most tokens, 259 (bytes and special tokens) or more; a few captions give fewer.
        context_length: tokens per text, start and end included, kept as `model_max_length`; at least 3.

    Returns:
        A tokenizer that puts the start and end tokens around every text; `save_pretrained` and `AutoTokenizer` work.

    Raises:
        ValueError: if a number is too small, a caption is no text, or there is no caption.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    if vocab_size < _BYTES + len(_SPECIAL):
        raise ValueError(
            f"`vocab_size` must be at least {_BYTES + len(_SPECIAL)}, for all bytes and {len(_SPECIAL)} special tokens; "
            f"got {vocab_size}."
        )
    if context_length < 3:
        raise ValueError(f"`context_length` must be at least 3: start, one token, end; got {context_length}.")
    texts = list(_texts(captions))
    if not texts:
        raise ValueError("`captions` must hold at least one caption; got none.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    # With a space before the first word too, a word has the same tokens wherever it stands.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(_SPECIAL),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    ends = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context_length,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
    )


def _texts(captions: Iterable[Any]) -> Iterator[str]:
    for number, caption in enumerate(captions):
        for text in caption if isinstance(caption, list | tuple) else [caption]:
            if text is not None and not is_text(text):
                raise ValueError(f"captions must be text; caption {number} is {text!r} ({type(text).__name__}).")
            if text is not None and text.strip():
                yield text


def longest_text(tokenizer: "PreTrainedTokenizerBase", text_config: Any) -> int:
    """The most tokens of a text that both take; towers like RoBERTa's have more positions than they have for tokens.

    Args:
        tokenizer: of transformers; its limit is `model_max_length`.
        text_config: configuration of the text tower, this library's or any other.
    """
    positions = getattr(text_config, "max_position_embeddings", None)
    return min(positions or tokenizer.model_max_length, tokenizer.model_max_length)


def check_tokenizer(tokenizer: "PreTrainedTokenizerBase", text_config: Any) -> None:
    """Refuse a tokenizer whose ids or lengths the text tower does not have, or whose texts end with another token.

    Args:
        tokenizer: of transformers.
        text_config: configuration of the text tower, this library's or any other; a field it has not is not checked.

    Raises:
        ValueError: if the tokenizer does not fit; the message says what to do.
    """
    size = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if size > text_config.vocab_size:
        raise ValueError(
            f"the tokenizer has ids up to {size - 1}, and the text tower has embeddings for `vocab_size` = "
            f"{text_config.vocab_size} tokens. Load the tokenizer that belongs to the text tower, or build the tower with "
            f"`vocab_size={size}`; a trained one grows by `model.resize_token_embeddings({size})`."
        )
    _check_end(tokenizer.eos_token_id, text_config, size)
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and positions < tokenizer.model_max_length < _UNLIMITED:
        raise ValueError(
            f"the tokenizer makes texts of up to `model_max_length` = {tokenizer.model_max_length} tokens, and the text "
            f"tower takes `max_position_embeddings` = {positions}. Set `tokenizer.model_max_length = {positions}`, or "
            "build the tower with more positions."
        )


def _check_end(end: int | None, text_config: Any, size: int) -> None:
    """The tower pools at the end token; which one that is must not be open to question."""
    if getattr(text_config, "pooling", None) == "last":  # at the last place, whatever stands there
        return
    wanted = getattr(text_config, "eos_token_id", None)
    is_legacy = getattr(text_config, "model_type", None) == "clip_text_model" and wanted == 2
    if is_legacy or getattr(text_config, "pooling", None) == "argmax":
        if end != size - 1:
            raise ValueError(
                f"the text tower pools at the highest id of a text, and the tokenizer's end token has the id "
                f"{end} of 0..{size - 1}. Load the tokenizer that belongs to the text tower, or set `pooling='eos'` and "
                f"`eos_token_id={end}` in the tower's configuration."
            )
        return
    allowed = wanted if isinstance(wanted, list | tuple) else [wanted]
    if wanted is not None and end not in allowed:
        raise ValueError(
            f"the tokenizer ends texts with `eos_token_id` = {end}, and the text tower's configuration says {wanted}. Load "
            f"the tokenizer that belongs to the text tower, or build the tower with `eos_token_id={end}`."
        )
