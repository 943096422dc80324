"""``python -m pqtun`` is the ``pqtun`` command."""

import sys

from pqtun.cli.main import main

sys.exit(main())
