"""Long-term keys on disk, ephemeral keys in memory, and the cache of verified server keys."""
