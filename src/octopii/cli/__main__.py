"""`python -m octopii.cli`: the command line where its script is not on the path."""

from octopii.cli import main

if __name__ == "__main__":
    main()
