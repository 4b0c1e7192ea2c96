"""The end of a CLIP training: final evaluation, pictures, results files and the model card."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cards.retrieval_figure import FoundCaptions, draw_retrieval
from ..data.captions import read_captions
from ..data.order import ImageView
from ..data.streams import StreamRows
from .clip import CLIPTrainer
from .half_weights import save_half
from .pair_arguments import captions_of
from .record import measure
from .report import draw_history, write_record


RETRIEVAL_PICTURE = "retrieval.png"
_PICTURED_ROWS = 8
_BEST = 5


def report_contrastive(
    trainer: CLIPTrainer,
    dataset: dict,
    run: dict,
    half_weights: bool = False,
    splits: Mapping[str, Sequence[dict]] | None = None,
) -> dict:
    """Evaluate a trained CLIP and write everything that belongs to the run into its output folder.

    Writes the model, image processor and tokenizer, all_results.json, run.json, README.md, retrieval.png and curves.png,
    the last unless the run was too short to log anything. Call it in every process; the first one writes.

    Args:
        trainer: after `train()`, with CLIP's processor.
        dataset: name, id, license, evaluation_split (and what else the card is to say of the data).
        run: recipe, config, command, base_model, and `zero_shot` if the trainer has labelled data: dataset, rows,
            classes, templates. `sources`: what opens the rows again (`RowArguments.source`).
        half_weights: save float16 weights, in half the space, and measure these; the model still loads as float32.
        splits: rows as they are stored, by what they were for, for their fingerprints. Default: the trainer's.

    Returns:
        The metrics: `eval_loss`, `eval_image_to_text_recall@1`, ..., `eval_zero_shot_top1`, ...
    """
    save_half(trainer) if half_weights else trainer.save_model(publish=False)
    prediction, evaluation = measure(trainer)
    metrics = prediction.metrics
    if not trainer.is_world_process_zero():
        return metrics
    directory = Path(trainer.args.output_dir)
    # transformers writes processor_config.json alone, which image pipelines of other libraries do not know.
    trainer.processing_class.image_processor.save_pretrained(directory)
    if half_weights:
        run = {**run, "half_weights": True}
    image_embeds, text_embeds, counts = map(torch.as_tensor, prediction.predictions)
    metrics["eval_samples"] = int((counts > 0).sum())
    picture, note = directory / RETRIEVAL_PICTURE, dataset.get("credit")
    draw_best_captions(trainer.eval_dataset, (image_embeds, text_embeds, counts), picture, note)
    draw_history(trainer.state.log_history, directory / "curves.png", "nats per pair")
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    counted = {"evaluation_rows": metrics["eval_samples"], "evaluation_captions": int(counts.sum())}
    if not isinstance(trainer.train_dataset, StreamRows):
        counted["known_captions"] = count_known_captions(trainer.train_dataset, trainer.eval_dataset)
    dataset = {**counted, **dataset}
    own = {
        "truncated_captions": getattr(trainer.data_collator, "num_truncated", 0),
        "evaluation": evaluation,
    }
    write_record(trainer, {"task": "contrastive-image-text", "dataset": dataset, **own, **run}, splits)
    return metrics


def count_known_captions(train_rows: Sequence[dict], eval_rows: Sequence[dict]) -> int:
    """How many captions of the evaluation rows are also captions of training rows, word for word."""
    known = set(_texts(train_rows))
    return sum(text in known for text in _texts(eval_rows))


def _texts(rows: Sequence[dict]) -> Iterator[str]:
    for caption in captions_of(rows):
        for text in [caption] if isinstance(caption, str) else caption or ():
            if isinstance(text, str) and text.strip():
                yield text.strip()


def draw_best_captions(
    rows: Sequence[dict], embeds: tuple[Tensor, Tensor, Tensor], path: Path, note: str | None = None
) -> Path:
    """Draw some images of a set, evenly spread, with the captions of the whole set that fit them best.

    Args:
        rows: with `image` and `caption`, a string or a list of strings.
        embeds: of images (rows, dim); of captions (rows, captions, dim), filled up where a row has fewer captions than
            others; and the numbers of captions (rows,), 0 for a row that is left out: what `CLIPTrainer.predict` gives.
        path: the PNG file to write.
        note: a line below the pictures.
    """
    image_embeds, text_embeds, counts = embeds
    is_caption = torch.arange(text_embeds.shape[1]) < counts[:, None]
    owners, places = is_caption.nonzero(as_tuple=True)
    texts = F.normalize(text_embeds[is_caption].float(), dim=-1)
    known = (counts > 0).nonzero().flatten()
    chosen = known[torch.linspace(0, len(known) - 1, min(_PICTURED_ROWS, len(known))).round().long()]
    view = ImageView(rows, None)
    images, found = [], []
    for row in chosen.tolist():
        cosines = texts @ F.normalize(image_embeds[row].float(), dim=-1)
        is_own = owners == row
        best = cosines.argsort(descending=True, stable=True)[:_BEST]
        images.append(view.image(row))
        found.append(
            FoundCaptions(
                captions=[_caption(view, owners[i], places[i]) for i in best],
                cosines=cosines[best].tolist(),
                are_right=is_own[best].tolist(),
                rank=1 + int(((cosines >= cosines[is_own].max()) & ~is_own).sum()),
                own=_caption(view, row, 0),
            )
        )
    return draw_retrieval(images, found, path, total=len(texts), note=note)


def _caption(view: ImageView, row: int | Tensor, place: int | Tensor) -> str:
    """One caption, without decoding its image."""
    return read_captions(view.rows[int(row)]["caption"])[int(place)]
