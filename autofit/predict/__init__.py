"""Memory and time of a configuration without running it: the trace of a structural variant, made symbolic. NumPy only."""
