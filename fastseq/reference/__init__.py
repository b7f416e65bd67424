"""The operators in a few lines of plain PyTorch: specification, test oracle, and fallback where no kernel serves."""
