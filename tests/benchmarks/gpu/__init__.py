"""Benchmarks the training path and the Transformers engine on one GPU, on a machine without Ray, vLLM, MLflow or a network."""
