"""Objectives: functions from a batch to a summed loss and the weight that divides it."""
