"""The client: `pqtun ssh` and what it shares with `pqtun scp` and `pqtun sftp`."""
