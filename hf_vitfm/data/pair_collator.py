"""Batches of images and their captions as token ids."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .collators import collate_labelled


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PADDINGS = ("longest", "max_length")
_COUNTERS = 1024  # loader workers that can count side by side


class PairCollator:
    """Stacks images and tokenises captions; works with any tokenizer of transformers, and leaves it as it is.

    What a caption spells out of special tokens ("<|endoftext|>") is ordinary text here. Captions longer than
    `context_length` are cut so that the tokens that the tokenizer puts around a text stay; they are counted, and the
    first one is reported in the log.

    Args:
        tokenizer: one without a padding token, as GPT-2's, pads with its end token; the mask tells them apart.
        context_length: the most tokens per caption, what the text tower takes at most (`longest_text`).
        padding: "longest" = to the longest caption of the batch, "max_length" = to `context_length`, for compiled models
            that want one shape.

    Raises:
        ValueError: if an argument is not one of these, or nothing can pad.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", context_length: int, padding: str = "longest"):
        if padding not in PADDINGS:
            raise ValueError(f"`padding` must be one of {', '.join(PADDINGS)}; got {padding!r}.")
        least = tokenizer.num_special_tokens_to_add() + 1
        if context_length < least:
            raise ValueError(
                f"`context_length` must be at least {least}, one token beside those that the tokenizer adds; got "
                f"{context_length}."
            )
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if self.pad_token_id is None:
            raise ValueError(
                "the tokenizer has neither a padding token nor an end token. Set one: `tokenizer.pad_token = ...`."
            )
        # A copy, since a tokenizer remembers how it was last called, and saves it.
        self.tokenizer, self.context_length, self.padding = copy.deepcopy(tokenizer), context_length, padding
        # A place per worker process: they share this memory, and adding to one number is not atomic.
        self._truncated = torch.zeros(_COUNTERS, dtype=torch.int64).share_memory_()

    @property
    def num_truncated(self) -> int:
        """Captions cut so far, by all loader workers of this process."""
        return int(self._truncated.sum())

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make one batch.

        Args:
            rows: each holds `pixel_values` (channels, height, width) and `caption`: a string in every row, or a list of
                strings in every row, as `ImageView` gives them in training and in evaluation.

        Returns:
            `pixel_values` (batch, channels, height, width), `input_ids` and `attention_mask` (texts, length), int64. With
            strings there is a text per image. With lists the texts of an image follow each other in the order of the
            images, and `text_to_image` (texts,) int64 holds the place of each one's image in the batch; an empty list,
            as a bad row has it, becomes one empty text that belongs to no image: -1.

        Raises:
            ValueError: if there are no rows, shapes differ, or a row has no pixel values or no caption.
        """
        batch = collate_labelled([{"pixel_values": row.get("pixel_values")} for row in rows])
        captions = [row.get("caption") for row in rows]
        are_lists = isinstance(captions[0], list)
        wrong = next(
            (i for i, caption in enumerate(captions) if not isinstance(caption, list if are_lists else str)), None
        )
        if wrong is not None:
            raise ValueError(
                f"every row must hold `caption`, all as strings or all as lists of strings; row {wrong} of the batch has "
                f"{captions[wrong]!r}. Wrap the rows in an `ImageView` with `captions=True`."
            )
        if not are_lists:
            return {**batch, **self.tokenize(captions)}
        texts = [text for several in captions for text in several or [""]]
        owners = [i if several else -1 for i, several in enumerate(captions) for _ in several or [""]]
        return {**batch, **self.tokenize(texts), "text_to_image": torch.tensor(owners)}

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise texts as a batch.

        Returns:
            `input_ids` and `attention_mask` (texts, length), int64.
        """
        ids = self.tokenizer(
            list(texts), split_special_tokens=True, return_attention_mask=False, verbose=False
        ).input_ids
        too_long = [i for i, tokens in enumerate(ids) if len(tokens) > self.context_length]
        if too_long:
            self._count(len(too_long), len(ids[too_long[0]]))
            cut = self.tokenizer(
                [texts[i] for i in too_long],
                split_special_tokens=True,
                truncation=True,
                max_length=self.context_length,
            ).input_ids
            for i, tokens in zip(too_long, cut, strict=True):
                ids[i] = tokens
        # GPT-2's tokenizer makes nothing of an empty text, and attention needs something to look at.
        ids = [tokens or [self.pad_token_id] for tokens in ids]
        length = self.context_length if self.padding == "max_length" else max(map(len, ids))
        return self._pad(ids, length)

    def _pad(self, ids: list[list[int]], length: int) -> dict[str, Tensor]:
        input_ids = torch.full((len(ids), length), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, tokens in enumerate(ids):
            place = slice(length - len(tokens), None) if self.tokenizer.padding_side == "left" else slice(len(tokens))
            input_ids[row, place] = torch.tensor(tokens)
            attention_mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _count(self, number: int, length: int) -> None:
        if not self.num_truncated:
            logger.warning(
                "A caption has %d tokens, and the text tower takes %d: it and all others that are too long are cut; "
                "`num_truncated` counts them.",
                length,
                self.context_length,
            )
        worker = get_worker_info()
        self._truncated[0 if worker is None else 1 + worker.id % (_COUNTERS - 1)] += number
