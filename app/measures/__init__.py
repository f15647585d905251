"""The quality numbers: pure arithmetic on counts."""
