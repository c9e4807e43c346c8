"""The local model: a GGUF file behind our own continuous batching, with the whole contract native."""
