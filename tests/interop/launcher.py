"""Runs in Debian 13's Python, in the root folder: launcher.py client|server|keygen ARGUMENT...

PQConnect as it is, but for one method: this kernel may have no nft `queue`, so the rule that hands it the DNS answers
is made by iptables-legacy.
"""

import importlib
import subprocess
import sys


def _add_dns_queue_rule(self, table_name, queue_num):  # type: ignore[no-untyped-def]
    rule = ["-t", "mangle", "-I", "INPUT", "-p", "udp", "--sport", "53", "-j", "NFQUEUE"]
    subprocess.run(["/usr/sbin/iptables-legacy", "-w", *rule, "--queue-num", str(queue_num)], check=True)


if __name__ == "__main__":
    command = sys.argv.pop(1)
    if command == "client":
        importlib.import_module("pqconnect.nft").NfqueueBuilder._add_dns_queue_rule = _add_dns_queue_rule
    importlib.import_module(f"pqconnect.{command}").main()
