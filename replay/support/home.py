"""The home folder of the user, who may have none: containers can run with any user ID."""

from pathlib import Path


def home_folder() -> Path:
    """Returns the home folder; without HOME and without an entry in the list of users, one that does not exist."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")
