"""How models mark their thinking, and what to do without marker tokens."""
