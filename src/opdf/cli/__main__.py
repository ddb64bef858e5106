"""`python -m opdf.cli`, the same as the `opdf` command."""

import sys

from opdf.cli import main

sys.exit(main())
