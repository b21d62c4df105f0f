"""Where a packet goes, decided from its addresses alone. Pure: no trio, no socket, no clock."""
