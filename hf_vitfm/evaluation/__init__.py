"""Layer 2: measures of a trained model and the protocols that produce them."""
