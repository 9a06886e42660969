"""From the past of a stream to the next integer distribution."""
