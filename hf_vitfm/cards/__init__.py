"""Layer 1: the model card and the figures of a finished run, drawn from its results files without any network."""
