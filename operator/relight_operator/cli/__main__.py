"""`python -m relight_operator.cli`: the console script, where no script is on the PATH."""

import sys

# `python -m` puts the working folder first: a user's `queue.py` there must not become the library's.
if __name__ == "__main__" and not (sys.flags.isolated or sys.flags.safe_path):
    del sys.path[0]

from relight_operator.cli.main import main

if __name__ == "__main__":
    main()
