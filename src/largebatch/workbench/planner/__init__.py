"""Schedules before a run: tables, files, what they are forecast to reach, and the best one."""
