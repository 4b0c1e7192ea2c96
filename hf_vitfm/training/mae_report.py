"""The end of a pre-training run: final evaluation, pictures, results files and the model card."""

import shutil
from pathlib import Path

from .mae import PICTURES, MAETrainer
from .report import draw_history, write_record


def report_pretraining(trainer: MAETrainer, dataset: dict, run: dict) -> dict:
    """Evaluate a pre-trained autoencoder and write everything that belongs to the run into its output folder.

    Writes the model, the processor, all_results.json, run.json, README.md, reconstructions.png and curves.png, the last
    unless the run was too short to log anything. Call it in every process; the first one writes.

    Args:
        trainer: after `train()`.
        dataset: name, id, license, evaluation_split (and what else the card is to say of the data).
        run: recipe, config, command, base_model.

    Returns:
        The metrics: `eval_loss` and, if the trainer has labelled data, `eval_knn_top1`.
    """
    metrics = trainer.evaluate()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return metrics
    directory = Path(trainer.args.output_dir)
    metrics["eval_samples"] = len(trainer.eval_dataset)
    shutil.copyfile(directory / PICTURES / f"step-{trainer.state.global_step}.png", directory / f"{PICTURES}.png")
    config = trainer.model.config
    unit = "mean squared error" + (", pixels normalised by patch" if config.norm_pix_loss else "")
    draw_history(trainer.state.log_history, directory / "curves.png", unit)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    dataset = {"evaluation_rows": len(trainer.eval_dataset), **dataset}
    write_record(trainer, {"task": "masked-image-modeling", "dataset": dataset, **run})
    return metrics
