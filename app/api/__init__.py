"""HTTP: one module per resource, bodies in, answers out."""
