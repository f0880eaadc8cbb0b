"""What a user would pick instead of a campaign: one program per peer, and what they share; `../peers.py` runs them."""
