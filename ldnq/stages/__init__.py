"""Stages of quantization: one file each. A stage takes a `QuantizationState` and returns the next."""
