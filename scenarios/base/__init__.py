"""Parents that several scenarios extend."""
