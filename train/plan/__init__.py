"""The command `plan`: compiles a train step and reports what it needs of each device."""
