"""The ledger: which images are done, what the index is made from, and who may write it."""
