"""``python -m nas_trainer``: one child."""

import sys

from nas_trainer.main import main
from nas_trainer.process import configure_logging

if __name__ == "__main__":
    configure_logging()
    sys.exit(main())
