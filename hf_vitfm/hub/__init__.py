"""Sharing models on the Hub."""
