"""How the server chooses among available clients, one way per file."""
