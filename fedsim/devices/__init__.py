"""What clients run on: profiles of devices and networks, fleets mixed of them, measured tables."""
