"""Measurements of pqtun beside PQConnect, in network namespaces."""
