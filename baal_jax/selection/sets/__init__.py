"""Selections of sets over features: feature maps × transforms × selectors, each a public module.

``_acquisitions`` puts the three together, and has the points of that grid with names: BADGE, BAIT, CoreSet
(k-center), LCMD, max-det, k-means++, Frank–Wolfe. BADGE reads ``feature_maps.badge`` of ``features.last_hidden``.
"""
