"""The server, ``pqtun sshd``: listener, monitor, worker and the processes of users."""
