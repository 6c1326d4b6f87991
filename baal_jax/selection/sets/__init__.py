"""Selections of sets over features: feature maps × transforms × selectors, each a public module.

``_acquisitions`` puts the three together, and has the points of that grid with names: BADGE, BAIT, CoreSet
(k-center), LCMD, max-det, k-means++, Frank–Wolfe. What BADGE reads, its gradients, is ``feature_maps.badge`` of what
``features.last_hidden`` gives the loop.
"""
