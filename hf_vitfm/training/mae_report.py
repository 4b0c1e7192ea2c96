"""The end of a pre-training run: final evaluation, pictures, results files and the model card."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from .half_weights import save_half
from .mae import PICTURES, MAETrainer
from .record import measure
from .report import draw_history, write_record


def report_pretraining(
    trainer: MAETrainer,
    dataset: dict,
    run: dict,
    half_weights: bool = False,
    splits: Mapping[str, Sequence[dict]] | None = None,
) -> dict:
    """Evaluate a pre-trained autoencoder and write everything that belongs to the run into its output folder.

    Writes the model, the processor, all_results.json, run.json, README.md, reconstructions.png and curves.png, the last
    unless the run was too short to log anything. Call it in every process; the first one writes.

    Args:
        trainer: after `train()`.
        dataset: name, id, license, evaluation_split (and what else the card is to say of the data).
        run: recipe, config, command, base_model, and `labelled` if the trainer has labelled data: dataset, bank_rows,
            query_rows. `sources`: what opens the rows again (`RowArguments.source`).
        half_weights: save float16 weights, in half the space, and measure these; the model still loads as float32.
        splits: rows as they are stored, by what they were for, for their fingerprints. Default: the trainer's.

    Returns:
        The metrics: `eval_loss` and, if the trainer has labelled data, `eval_knn_top1`.
    """
    save_half(trainer) if half_weights else trainer.save_model(publish=False)
    output, evaluation = measure(trainer)
    metrics = output.metrics
    trainer.log(dict(metrics))
    if not trainer.is_world_process_zero():
        return metrics
    directory = Path(trainer.args.output_dir)
    if half_weights:
        run = {**run, "half_weights": True}
    metrics["eval_samples"] = len(trainer.eval_dataset)
    picture = directory / PICTURES / f"step-{trainer.state.global_step}.png"
    if picture.is_file():  # a trainer without an image processor draws none
        shutil.copyfile(picture, directory / f"{PICTURES}.png")
    config = trainer.model.config
    unit = "mean squared error" + (", normalised pixels" if config.norm_pix_loss else "")
    draw_history(trainer.state.log_history, directory / "curves.png", unit)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    dataset = {"evaluation_rows": len(trainer.eval_dataset), **dataset}
    write_record(
        trainer, {"task": "masked-image-modeling", "dataset": dataset, "evaluation": evaluation, **run}, splits
    )
    return metrics
