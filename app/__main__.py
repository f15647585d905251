"""`python -m app COMMAND`."""

from app.cli import run

if __name__ == "__main__":
    run()
