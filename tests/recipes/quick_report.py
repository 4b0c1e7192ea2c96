"""The end of a fine-tuning run without pictures and card, which take longer than the training of these tests."""

import json
from pathlib import Path

import pytest

from hf_vitfm.training import fine_tuning


def report(trainer, dataset: dict, run: dict, half_weights: bool = False, splits: dict | None = None) -> dict:
    """What `report_classification` leaves, but for the card and its pictures; for one process."""
    metrics = trainer.evaluate()
    metrics["eval_samples"] = len(trainer.eval_dataset)
    trainer.save_metrics("eval", metrics)
    trainer.save_model()
    Path(trainer.args.output_dir, "run.json").write_text(json.dumps({**run, "dataset": dataset}))
    return metrics


def use_quick_report(patch: pytest.MonkeyPatch) -> None:
    """Let the scripts that train classifiers end their runs with `report`."""
    patch.setattr(fine_tuning, "report_classification", report)
    patch.setattr(fine_tuning, "check_reload", lambda *args: None)
