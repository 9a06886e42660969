"""The container: headers, segments, index, checksums, limits. Knows no probabilities and no models."""
