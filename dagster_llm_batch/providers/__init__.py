"""Providers: a folder a vendor, each with the same files. `registry.py` names them; nothing here knows two of them."""
