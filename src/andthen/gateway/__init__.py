"""One request: routing, backends, attempts, the pipeline."""
