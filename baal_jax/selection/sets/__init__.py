"""Selections of sets over features: feature maps × transforms × selectors, each a public module.

``_grid`` puts the three together, and has the acquisitions that are points of that grid: BADGE, BAIT, CoreSet
(k-center), LCMD, max-det, k-means++, Frank–Wolfe. What BADGE reads, its gradients, is ``feature_maps.badge`` of what
``features.last_hidden`` gives the loop.
"""
