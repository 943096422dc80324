"""inetd.py PORT PROGRAM ARGUMENT...: runs the program for each TCP connection, which is its stdin and stdout."""

from __future__ import annotations

import socket
import subprocess
import sys


def main() -> None:
    port, *argv = sys.argv[1:]
    with socket.create_server(("", int(port)), backlog=100) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                # Nobody waits for it here: the next Popen reaps those that have ended.
                subprocess.Popen(argv, stdin=connection, stdout=connection, start_new_session=True)


if __name__ == "__main__":
    main()
