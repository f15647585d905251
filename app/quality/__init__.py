"""Labels to numbers: taking labels, counting them against predictions, F1."""
