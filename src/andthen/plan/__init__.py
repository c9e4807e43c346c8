"""What each parameter becomes on a given model."""
