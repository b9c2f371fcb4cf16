"""Training as several processes: rendezvous, barriers, preemption."""
