"""Send recorded rows through a running server, with their labels later: once, or as a demo that never ends."""
