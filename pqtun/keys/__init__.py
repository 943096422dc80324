"""Long-term key directory, ring of ephemeral keys, cache of servers' public keys."""
