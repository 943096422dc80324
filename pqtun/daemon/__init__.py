"""The client and server services: privileged parent, unprivileged worker, control socket."""
