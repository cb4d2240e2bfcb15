"""Building ONNX graphs of a GLM directly from its checkpoint: no torch, one part in memory at a time."""
