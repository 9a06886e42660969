"""The container: headers, segments, index, checksums, limits. Knows no probabilities and no models.

SPEC.md, beside this file, describes every byte.
"""
