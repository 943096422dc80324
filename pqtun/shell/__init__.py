"""SSH over the tunnel: server, client, keys."""
