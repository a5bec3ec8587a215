"""Runs programs: engines, the virtual clock and the pricing of steps."""
