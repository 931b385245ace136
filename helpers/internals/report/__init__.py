"""Whether all of it fits together: the rows of `check_environment`."""
