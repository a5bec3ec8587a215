"""Values and bytes, no seconds: what collectives deliver, what is encoded, who sends how much, and the ledger."""
