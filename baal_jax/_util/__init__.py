"""Pieces that every room uses: checks, numerics, linear algebra, random numbers, files, pictures."""

__version__ = "0.1.0"
