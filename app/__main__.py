"""`python -m app COMMAND`: the same as `scorekeeper COMMAND`, when that is not on the PATH."""

from app.commands.parser import run

if __name__ == "__main__":
    run()
