"""Providers: a folder a vendor with the same files in each. `registry.py` names them; nothing here knows two of them."""
