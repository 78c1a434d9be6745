"""Fake quantization with gradients: one file per method."""
