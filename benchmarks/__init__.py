"""The wall-clock comparison with the PyTorch baseline, and what else is measured; each module is a command."""
