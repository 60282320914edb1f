"""``python -m nas_trainer``: one child."""

import sys

from nas_trainer.main import configure_logging, main

if __name__ == "__main__":
    configure_logging()
    sys.exit(main())
