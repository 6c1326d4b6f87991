"""Selections of sets over features: feature maps × transforms × selectors, each a public module.

``_acquisitions`` puts them together: BADGE, BAIT, CoreSet (k-center), LCMD, max-det, k-means++, Frank–Wolfe.
"""
