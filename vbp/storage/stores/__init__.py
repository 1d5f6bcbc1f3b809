"""Stores: one file a kind of store, all behind one interface (``store.Store``)."""
