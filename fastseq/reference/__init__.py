"""The operators in plain PyTorch: specification, test oracle, and fallback."""
