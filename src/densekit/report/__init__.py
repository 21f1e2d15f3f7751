"""How right a network is, to look at: one page, figures, and the answers themselves."""
