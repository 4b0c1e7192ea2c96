"""Train a linear classifier on the frozen encoder of a masked autoencoder (or of a ViT): a linear probe.

MAE paper (He et al. 2022), section 4 and appendix A.1. The class token passes the encoder's final norm, a batch norm
without scale and shift, and one linear layer, the only one that is trained, by LARS:

    python recipes/mae/linear_probe.py recipes/mae/configs/linear_probe_b16_in1k.yaml --checkpoint path/to/mae

The saved model is a plain ViT: the batch norm is folded into its head.
"""

from hf_vitfm.training.fine_tuning import ClassificationRun, build_classifier
from hf_vitfm.training.linear_probe import LinearProbeForImageClassification, load_linear_probe


def main(argv: list[str] | None = None) -> dict:
    """Run the recipe; returns the metrics of the evaluation set."""
    # 1. Command line and data
    run = ClassificationRun.start("recipes/mae/linear_probe.py", argv, description=__doc__)
    # 2. Frozen encoder with a new head, and the image processor
    model, processor = build_classifier(
        run.model_args, run.targets, run.smoke, load_linear_probe, LinearProbeForImageClassification
    )
    # 3. Train the head, then make a plain ViT
    trainer = run.train(model, processor)
    trainer.model = trainer.model.fold()
    # 4. Evaluate, draw, write the card, reload
    return run.report(trainer)


if __name__ == "__main__":
    main()
