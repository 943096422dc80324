"""Serves and downloads the nodes of the key tree."""
