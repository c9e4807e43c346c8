"""A self-hosted completions server: a text goes in, what comes next goes out."""

__version__ = "0.1.0"
