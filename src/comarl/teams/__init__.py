"""Trained teams as objects: they act by themselves, and can be given away as files."""
