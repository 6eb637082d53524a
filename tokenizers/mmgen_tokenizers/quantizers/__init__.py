"""Quantizers: vectors <-> ids, and their training losses."""
