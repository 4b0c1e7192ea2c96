"""Layer 5: the command `hf-vitfm`, thin over the library."""
