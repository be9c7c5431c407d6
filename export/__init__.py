"""Export: cut a Hugging Face model into stages and build ONNX files and TensorRT plans from them."""
