"""Who speaks which language, where, and what each model takes: a TOML file for a vendor, read by `rows`."""
