"""`python -m app COMMAND`."""

from app.commands.parser import run

if __name__ == "__main__":
    run()
