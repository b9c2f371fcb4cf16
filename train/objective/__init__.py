"""Objectives: from a batch to a summed loss and the weight it is divided by."""
