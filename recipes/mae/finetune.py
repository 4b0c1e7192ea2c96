"""Fine-tune the encoder of a masked autoencoder, or train the same ViT from scratch by the same recipe.

MAE paper (He et al. 2022), section 4 and appendix A.1 and A.2. The decoder is dropped, the patches are averaged
(`pooling: mean`), and all weights are trained, the positions too. One command does the whole run:

    python recipes/mae/finetune.py recipes/mae/configs/finetune_b16_in1k.yaml --checkpoint path/to/mae

`checkpoint` is a folder or a Hub id, of this library or of transformers; without one the model begins at random. What can
be trained on, and how, is the same as in recipes/vit/finetune.py.
"""

from hf_vitfm.training.fine_tuning import ClassificationRun, build_classifier


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns the metrics of the evaluation set."""
    # 1. Command line and data
    run = ClassificationRun.start("recipes/mae/finetune.py", argv, description=__doc__)
    # 2. Encoder with a new head, and the image processor
    model, processor = build_classifier(run.model_args, run.targets, run.smoke)
    # 3. Train
    trainer = run.train(model, processor)
    # 4. Evaluate, draw, write the card, reload
    return run.report(trainer)


if __name__ == "__main__":
    main()
