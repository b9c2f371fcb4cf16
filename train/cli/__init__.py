"""The commands of python -m train; what they need is imported when they run."""
