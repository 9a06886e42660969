"""Integer probabilities in, bits out. Knows no models, no tokens, no files."""
