"""`python -m relight_operator.cli`: the console script, where no script is on the PATH."""

from relight_operator.cli.main import main

if __name__ == "__main__":
    main()
