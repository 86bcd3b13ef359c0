"""Schedules before a run: their tables and files, what they are forecast to reach, and the best one."""
