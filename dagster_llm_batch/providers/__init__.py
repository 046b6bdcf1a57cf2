"""Providers: one folder per vendor, each with the same files. `registry.py` lists them; the rest handles one each."""
