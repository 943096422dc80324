"""Every test of the shell finds asyncssh with pqtun's algorithms in it."""

from pqtun.shell import ssh

ssh.prepare()
