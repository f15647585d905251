"""The numbers, as pure arithmetic on counts."""
