"""What `make packages` makes, built and used as people would."""
