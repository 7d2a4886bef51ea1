"""Run the command line by `python -m hardcase`."""

from hardcase.cli.main import main

if __name__ == "__main__":
    main()
