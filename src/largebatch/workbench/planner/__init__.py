"""Count, store, forecast and optimize schedules before a run."""
