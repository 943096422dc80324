"""`python -m benchmarks.publish [FILE]`: the tables and plots of a run, from its JSON document (default: the newest).

In doc/performance.md, what stands between `<!-- bench NAME -->` and `<!-- end -->` is written anew; NAME is one of
those that `parts` returns. The plots go to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.contenders import MAKERS
from benchmarks.report import RESULTS, ROOT, bytes_per_tunnel, goals, growth_table, table
from benchmarks.samples import Samples

PAGE = ROOT / "doc/performance.md"
_PART = re.compile(r"(<!-- bench ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def parts(document: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by name: setting, contenders, goals, growth, handshakes; only what was measured."""
    samples = Samples.from_summary(document["contenders"])
    names = [name for name in MAKERS if name in samples.names()]
    machine, setting = document["machine"], document["setting"]
    mtu = ", ".join(f"{name} {setting['mtu'][name]}" for name in names)
    found = {
        "setting": f"{document['measured'][:10]}, commit {machine['commit']}: {machine['cores']} cores of "
        f"{machine['processor']}, Linux {machine['kernel']}, {setting['repetitions']} repetitions.\n"
        f"MTU: {mtu}.",
        "contenders": table(samples, names, markdown=True),
        "goals": goals(samples, document, markdown=True)[0],
    }
    if "growth" in document:
        steps = document["growth"]["steps"]
        found["growth"] = growth_table(steps, markdown=True)
        each = bytes_per_tunnel(steps)
        if each is not None:
            found["growth"] += f"\n\nEach tunnel takes {each:.0f} bytes of the server."
    return found


def rewrite(page: str, found: Mapping[str, str]) -> str:
    """The page with these parts; a part that was not measured stays as it is."""
    return _PART.sub(lambda m: f"{m[1]}{found[m[2]]}\n{m[3]}" if m[2] in found else m[0], page)


def main() -> int:
    """Rewrite the page and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="benchmarks/results/bench-DATE.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: doc/performance.md")
    options = parser.parse_args()
    source = options.file or max(RESULTS.glob("bench-*.json"))
    document = json.loads(source.read_text())
    options.page.write_text(rewrite(options.page.read_text(), parts(document)))
    from benchmarks.plots import draw  # only here is matplotlib needed

    for path in draw(document, RESULTS):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
