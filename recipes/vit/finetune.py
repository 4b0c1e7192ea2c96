"""Train or fine-tune a Vision Transformer (or any image classifier of the Hub) on images with classes or numbers.

ViT paper (Dosovitskiy et al. 2021), section 4.1 and appendix B.1.1. One command does the whole run:

    python recipes/vit/finetune.py recipes/vit/configs/fashion_scratch.yaml

On several devices put `accelerate launch` in the place of `python`. `--smoke` runs any configuration in seconds. The steps
in full are in `hf_vitfm.training.fine_tuning`; finetune_no_trainer.py is the same training as one plain loop.
"""

from hf_vitfm.training.fine_tuning import ClassificationRun, build_classifier


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns the metrics of the evaluation set."""
    # 1. Command line and data
    run = ClassificationRun.start("recipes/vit/finetune.py", argv, description=__doc__)
    # 2. Model and image processor
    model, processor = build_classifier(run.model_args, run.targets, run.smoke)
    # 3. Train
    trainer = run.train(model, processor)
    # 4. Evaluate, draw, write the card, reload
    return run.report(trainer)


if __name__ == "__main__":
    main()
