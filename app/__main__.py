"""`python -m app COMMAND`: `scorekeeper COMMAND` where it is not on the PATH."""

from app.commands.parser import run

if __name__ == "__main__":
    run()
