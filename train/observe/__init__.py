"""Progress during a run, and its report at the end."""
