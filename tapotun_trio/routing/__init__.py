"""Decides where a packet goes, from its addresses alone. Pure: no trio, no socket, no clock. Read `router` first."""
