"""Answering: evaluate(prompts) -> label logits, on PyTorch, ONNX Runtime and others."""
