"""Files of labels, into a running server."""
