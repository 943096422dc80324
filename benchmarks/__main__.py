"""`python -m benchmarks`: the measurements of benchmarks/run.py."""

import sys

from benchmarks.run import main

sys.exit(main())
