"""`densekit export`: a network out of torch, measured before anybody relies on it."""
