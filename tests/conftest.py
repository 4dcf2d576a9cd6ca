"""What holds for all tests."""

from hypothesis import settings

# No test is timed: an example may take long on a machine that does other things, too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
