"""Interception and rewriting of this host's own DNS lookups."""
