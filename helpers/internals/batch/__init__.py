"""Prompts in files, records that survive a kill, and their summary."""
