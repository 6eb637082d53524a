"""Families: network + quantizer = a tokenizer. Each is a frozen config and pure functions over a plain dict of parameters."""
