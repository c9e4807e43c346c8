"""API keys: what a key may do, and the keys that are valid."""
