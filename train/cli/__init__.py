"""The commands of the program; the packages they need are imported when a command runs."""
