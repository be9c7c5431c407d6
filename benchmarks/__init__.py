"""The benchmarks: speed against the PyTorch baselines, accuracy, fidelity and others; each module is a command."""
