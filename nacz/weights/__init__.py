"""Where weights come from, what they hash to, and how they become an exact integer model."""
