"""Selections of sets over features: feature maps × transforms × selectors, each a public module.

:func:`~baal_jax.selection.grid` puts the three together; the named points of the grid stand beside it.
"""
