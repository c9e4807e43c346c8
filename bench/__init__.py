"""What `make bench` measures: the engine beside its peers, and what the way to it costs."""
