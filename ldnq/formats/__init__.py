"""File formats of quantized networks: one file each."""
