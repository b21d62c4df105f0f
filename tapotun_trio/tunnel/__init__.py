"""Interfaces: what runs in each one's nursery, and what supervises them. Start at `interface`."""
