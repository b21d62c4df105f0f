"""What developers run by hand: the demo, the soak test and the screenshots of the panel."""
