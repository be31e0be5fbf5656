"""`python -m rotalabs_steer VERB`: the command line where its script is not on the path."""

from rotalabs_steer.cli import main

if __name__ == "__main__":
    main()
