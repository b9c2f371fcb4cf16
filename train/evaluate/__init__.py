"""Evaluation of a model by the tasks of lm-evaluation-harness."""
