"""pqtun: a post-quantum tunnel daemon that speaks the pq1 protocol of PQConnect."""

__version__ = "0.1.0"
