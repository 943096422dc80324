"""Serves and downloads long-term keys (as nodes of a hash tree) and ephemeral keys."""
