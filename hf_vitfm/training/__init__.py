"""Layer 3: training arguments, optimisation and trainers."""
