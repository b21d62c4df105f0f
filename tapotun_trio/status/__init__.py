"""The status of a running process: its structs (`model`) and its text for people (`render`)."""
