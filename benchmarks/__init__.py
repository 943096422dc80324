"""Measurements of pqtun beside other tunnels, in network namespaces."""
