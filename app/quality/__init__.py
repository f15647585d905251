"""Labels to numbers: take labels, compare them with predictions, compute F1."""
