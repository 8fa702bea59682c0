"""Merged, exported and compared: trained models on their way to a product."""
