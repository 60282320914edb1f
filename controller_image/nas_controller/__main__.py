"""``python -m nas_controller``: the search of one experiment, in its pod."""

import os
import sys

from nas_controller.main import main

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Helper threads may hang in calls to servers that are gone: they must not hold up the end.
    os._exit(code)
