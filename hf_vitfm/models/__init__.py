"""Layer 0: configurations and models. Each file is self-contained apart from its siblings, so that it can be shipped to the Hub."""
