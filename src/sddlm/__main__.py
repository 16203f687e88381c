"""``python -m sddlm``."""

import sys

from sddlm.cli import main

sys.exit(main())
