"""Where things live: folders on any store, names, the manifest, the ledger of what is done, the lease."""
