"""Commands that make what the repository ships; run them from its root."""
