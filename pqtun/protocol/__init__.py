"""The pq1 protocol itself: pure functions and state machines.

Bytes and ``now`` go in, bytes and verdicts come out. Nothing here opens a socket, reads a clock, starts a thread or
keeps global state. Section numbers in docstrings refer to ``doc/protocol.md``.
"""
