"""Building: a Hugging Face model becomes stages, ONNX files and TensorRT plans."""
