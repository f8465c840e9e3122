"""``python -m sad_components.doctor``: the command without the console script."""

import sys

from sad_components.doctor.command import main

sys.exit(main())
