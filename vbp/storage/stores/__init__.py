"""Stores: one module for each kind of store, all with the same interface (``store.Store``)."""
