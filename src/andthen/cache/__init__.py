"""Replies that are given again to whoever asks for just the same. Knows nobody who makes a reply."""
