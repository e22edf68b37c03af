"""Columns that other machines train: a board of tasks, who carries them out, and who waits."""
