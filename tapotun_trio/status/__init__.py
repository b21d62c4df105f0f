"""What a running process tells about itself: its shape, and how people read it."""
