"""What `make bench` measures: the engine beside its peers, and what the ways to it and to vendors cost."""
