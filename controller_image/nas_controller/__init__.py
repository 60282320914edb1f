"""The search: policies, the durable log, and the loop that launches children and learns from them."""
