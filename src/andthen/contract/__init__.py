"""The words of the API. Pure: no IO, no clock, no randomness."""
